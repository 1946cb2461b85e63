package clients

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

func TestNbdinfoDescribesExports(t *testing.T) {
	t.Parallel()
	d := serve(t, filepath.Join(scratch(t), "d"))
	d.varve("volume", "create", "web", "--size", "64T")
	d.varve("volume", "create", "db", "--size", "4608")
	d.varve("snapshot", "create", "web", "--name", "one")
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 1 4k 8k", d.uri("web"))

	type export struct {
		Name           string   `json:"export-name"`
		Size           int64    `json:"export-size"`
		ReadOnly       bool     `json:"is_read_only"`
		MultiConn      bool     `json:"can_multi_conn"`
		DF             bool     `json:"can_df"`
		FUA            bool     `json:"can_fua"`
		Flush          bool     `json:"can_flush"`
		Trim           bool     `json:"can_trim"`
		Zero           bool     `json:"can_zero"`
		FastZero       bool     `json:"can_fast_zero"`
		Cache          bool     `json:"can_cache"`
		Contexts       []string `json:"contexts"`
		PreferredBlock int64    `json:"block_size_preferred"`
	}
	describe := func(args ...string) map[string]export {
		t.Helper()
		var got struct{ Exports []export }
		must(t, json.Unmarshal([]byte(run(t, "nbdinfo", append([]string{"--json"}, args...)...)), &got), "nbdinfo %q", args)
		named := map[string]export{}
		for _, e := range got.Exports {
			named[e.Name] = e
		}
		return named
	}

	web := describe(d.uri("web"))["web"]
	if web.Size != 64<<40 || web.ReadOnly || !web.MultiConn || !web.DF || !web.FUA || !web.Flush || !web.Trim || !web.Zero || !web.FastZero || !web.Cache {
		t.Errorf("volume: %+v", web)
	}
	if one := describe(d.uri("web@one"))["web@one"]; one.Size != 64<<40 || !one.ReadOnly || !one.MultiConn {
		t.Errorf("snapshot: %+v", one)
	}
	all := describe("--list", d.uri(""))
	if len(all) != 3 || all["db"].Size != 4608 || !all["web@one"].ReadOnly || all["web"].ReadOnly {
		t.Errorf("list: %+v", all)
	}
	if len(web.Contexts) == 0 || web.Contexts[0] != "base:allocation" {
		t.Errorf("meta contexts: %q", web.Contexts)
	}
	if o := execute("", "nbdinfo", d.uri("nothing")); o.status == 0 {
		t.Error("an export that is not there was described")
	}

	type extent struct {
		Offset, Length int64
		Type           int
	}
	var got []extent
	must(t, json.Unmarshal([]byte(run(t, "nbdinfo", "--map", "--json", d.uri("web"))), &got), "nbdinfo --map")
	const hole = 3
	if len(got) != 3 || got[0] != (extent{0, 4096, hole}) || got[1] != (extent{4096, 8192, 0}) || got[2] != (extent{12288, 64<<40 - 12288, hole}) {
		t.Errorf("map: %v", got)
	}
}

func TestNbdcopyBothWays(t *testing.T) {
	t.Parallel()
	dir := scratch(t)
	d := serve(t, filepath.Join(dir, "d"))
	raw := picture(t, dir, 24<<20)
	d.varve("volume", "create", "web", "--size", "24M")
	d.varve("volume", "create", "other", "--size", "24M")

	run(t, "nbdcopy", "--flush", "--connections=4", raw, d.uri("web"))
	d.varve("snapshot", "create", "web", "--name", "one")
	run(t, "nbdcopy", "--flush", "--requests=32", d.uri("web@one"), d.uri("other"))
	back := filepath.Join(dir, "back.raw")
	run(t, "nbdcopy", d.uri("other"), back)

	want, err := os.ReadFile(raw)
	must(t, err, "read the picture")
	got, err := os.ReadFile(back)
	must(t, err, "read what came back")
	if !bytes.Equal(got, want) {
		t.Fatal("what was copied in and out differs")
	}
	d.checkPool()
}
