package clients

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/internal/contract"
)

// picture writes a raw image with content at both ends, random data, and holes.
func picture(t *testing.T, dir string, sizeBytes int64) string {
	t.Helper()
	name := filepath.Join(dir, "picture.raw")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	must(t, f.Truncate(sizeBytes), "truncate")
	random := rand.NewChaCha8([32]byte{'p', 'i', 'c', 't', 'u', 'r', 'e'})
	for _, run := range []struct{ off, length int64 }{{0, 100}, {1 << 20, 3<<20 + 4097}, {sizeBytes - 5000, 5000}} {
		p := make([]byte, run.length)
		random.Read(p)
		_, err := f.WriteAt(p, run.off)
		must(t, err, "write the picture")
	}
	return name
}

func TestQEMUConvertsInAndOut(t *testing.T) {
	t.Parallel()
	dir := scratch(t)
	d := serve(t, filepath.Join(dir, "d"))
	const size = 16<<20 + 512
	raw := picture(t, dir, size)
	d.varve("volume", "create", "web", "--size", "16777728")

	info := struct {
		Size   int64  `json:"virtual-size"`
		Format string `json:"format"`
	}{}
	must(t, json.Unmarshal([]byte(run(t, "qemu-img", "info", "--output=json", "-f", "raw", d.uri("web"))), &info), "qemu-img info")
	if info.Size != size {
		t.Fatalf("qemu-img info says that the size is %d", info.Size)
	}

	run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", raw, d.uri("web"))
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", raw, d.uri("web"))
	d.varve("snapshot", "create", "web", "--name", "one")
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 7 1M 64k", d.uri("web"))

	out := filepath.Join(dir, "out.qcow2")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", d.uri("web@one"), out)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, out)
	if o := execute("", "qemu-img", "compare", "-f", "raw", "-F", "raw", raw, d.uri("web")); o.status != 1 {
		t.Fatalf("the volume should differ from its snapshot: status %d, %s", o.status, o.stderr)
	}
	d.checkPool()
}

func TestQEMUSeesHoles(t *testing.T) {
	t.Parallel()
	d := serve(t, filepath.Join(scratch(t), "d"))
	d.varve("volume", "create", "web", "--size", "8M")
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 1 1M 1M", "-c", "write -P 1 4M 64k", d.uri("web"))

	type extent struct {
		Start, Length int64
		Data, Zero    bool
	}
	var got []extent
	must(t, json.Unmarshal([]byte(run(t, "qemu-img", "map", "--output=json", "-f", "raw", d.uri("web"))), &got), "qemu-img map")
	want := []extent{
		{0, 1 << 20, false, true}, {1 << 20, 1 << 20, true, false}, {2 << 20, 2 << 20, false, true},
		{4 << 20, 64 << 10, true, false}, {4<<20 + 64<<10, 4<<20 - 64<<10, false, true},
	}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("extent %d: got %v, want %v", i, got[i], want[i])
		}
	}
}

func TestQEMUAcceptsExportsAndImportsBack(t *testing.T) {
	t.Parallel()
	dir := scratch(t)
	d := serve(t, filepath.Join(dir, "d"))
	raw := picture(t, dir, 8<<20)
	d.varve("volume", "create", "web", "--from", raw)
	d.varve("snapshot", "create", "web", "--name", "one")
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 9 2M 64k", d.uri("web"))

	for _, format := range []string{"raw", "qcow2"} {
		ofHead, ofSnapshot := filepath.Join(dir, "head."+format), filepath.Join(dir, "snapshot."+format)
		d.varve("volume", "export", "web", ofHead, "--format", format)
		d.varve("volume", "export", "web@one", ofSnapshot, "--format", format)
		if format == "qcow2" {
			run(t, "qemu-img", "check", ofHead)
			run(t, "qemu-img", "check", ofSnapshot)
		}
		run(t, "qemu-img", "compare", "-f", "raw", "-F", format, raw, ofSnapshot)
		run(t, "qemu-img", "compare", "-f", "raw", "-F", format, d.uri("web"), ofHead)
	}

	for name, options := range map[string][]string{
		"plain": nil, "compressed": {"-c"}, "old": {"-o", "compat=0.10"}, "zstd": {"-c", "-o", "compression_type=zstd"},
	} {
		file := filepath.Join(dir, name+".qcow2")
		run(t, "qemu-img", append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, options...), raw, file)...)
		if v := ask[contract.Volume](d, "volume", "create", name, "--from", file); v.Size != 8<<20 {
			t.Fatalf("%s: size %d", name, v.Size)
		}
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", raw, d.uri(name))
	}
	d.checkPool()
}

func TestQEMUReadsWhatItWrote(t *testing.T) {
	t.Parallel()
	d := serve(t, filepath.Join(scratch(t), "d"))
	d.varve("volume", "create", "web", "--size", "16M")
	d.varve("snapshot", "create", "web", "--name", "empty")

	io := func(export string, commands ...string) {
		t.Helper()
		args := []string{"-f", "raw", "-d", "unmap"}
		if strings.Contains(export, "@") {
			args = append(args, "-r")
		}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		// It does not fail for what asynchronous commands find out.
		if out := run(t, "qemu-io", append(args, d.uri(export))...); strings.Contains(out, "fail") || strings.Contains(out, "error") {
			t.Fatalf("qemu-io %q:\n%s", commands, out)
		}
	}
	io("web",
		"write -P 0x11 0 1M", "read -P 0x11 0 1M",
		"write -P 0x22 512 513", "read -P 0x11 0 512", "read -P 0x22 512 513", "read -P 0x11 1025 1023",
		"write -f -P 0x33 2M 128k", "read -P 0x33 2M 128k",
		"write -z 64k 64k", "read -P 0 64k 64k", "read -P 0x11 128k 64k",
		"write -z -u 256k 64k", "read -P 0 256k 64k",
		"discard 512k 256k", "read -P 0 512k 256k", "read -P 0x11 768k 256k",
		"aio_write -P 0x44 4M 1M", "aio_write -P 0x55 5M 64k", "aio_write -P 0x66 8M 4k", "aio_write -f -P 0x77 9M 64k", "aio_flush",
		"aio_read -P 0x44 4M 1M", "aio_read -P 0x55 5M 64k", "aio_read -P 0x66 8M 4k", "aio_read -P 0x77 9M 64k", "aio_flush",
		"aio_write -z 4M 64k", "aio_flush", "aio_read -P 0 4M 64k", "aio_flush",
		"write -P 0x88 16776704 512", "flush",
	)
	d.varve("snapshot", "create", "web", "--name", "one")
	io("web", "discard 0 16M", "read -P 0 0 16M")
	if v := ask[contract.Volume](d, "volume", "show", "web"); v.MappedBytes != 0 {
		t.Errorf("all is discarded, and %d bytes are mapped", v.MappedBytes)
	}
	io("web@empty", "read -P 0 0 16M")
	io("web@one",
		"read -P 0x11 0 512", "read -P 0x22 512 513", "read -P 0x33 2M 128k", "read -P 0 512k 256k",
		"read -P 0 4M 64k", "read -P 0x44 4160k 960k", "read -P 0x77 9M 64k", "read -P 0x88 16776704 512")
	if o := execute("", "qemu-io", "-f", "raw", "-c", "write 0 4k", d.uri("web@one")); o.status == 0 {
		t.Fatalf("a snapshot was opened for writing: %+v", o)
	}
	io("web@one", "read -P 0x11 0 512")
	d.checkPool()
}
