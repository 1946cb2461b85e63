package clients

import (
	"path/filepath"
	"testing"
)

// Each job of fio has a connection and a region of its own. What it wrote is verified when it has written
// all, and once more after the daemon was stopped, and after it was killed.
func TestFioVerifiesOverSeveralConnections(t *testing.T) {
	t.Parallel()
	dir := scratch(t)
	data := filepath.Join(dir, "d")
	d := serve(t, data)
	d.varve("volume", "create", "web", "--size", "64M")
	d.varve("snapshot", "create", "web", "--name", "empty")
	fio := func(options ...string) {
		t.Helper()
		o := execute(dir, "fio", append([]string{
			"--name=verify", "--ioengine=nbd", "--uri=" + d.uri("web"), "--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned",
			"--numjobs=4", "--size=12M", "--offset_increment=16M", "--iodepth=16", "--fsync=64",
			"--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--group_reporting",
		}, options...)...)
		if o.status != 0 {
			t.Fatalf("fio %q: status %d %v\n%s%s", options, o.status, o.err, o.stdout, o.stderr)
		}
	}
	fio("--do_verify=1")
	d.varve("snapshot", "create", "web", "--name", "full")
	d.stop()

	d = serve(t, data)
	fio("--verify_only")
	fio("--do_verify=1", "--randseed=7")
	d.kill()

	d = serve(t, data)
	fio("--verify_only", "--randseed=7")
	d.varve("snapshot", "rollback", "web@full")
	fio("--verify_only")
	d.checkPool()
}
