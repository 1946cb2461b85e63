package clients

import (
	"errors"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/nbd/client"
)

// SIGTERM comes in the middle of writes: those that are acknowledged are there
// afterwards, in a checkpoint. SIGKILL leaves no time for one.
func TestStoppedDaemonDrains(t *testing.T) {
	t.Parallel()
	const blocks = 512
	data := filepath.Join(scratch(t), "d")
	d := serve(t, data)
	d.varve("volume", "create", "web", "--size", "2M")
	connections := []*client.Client{d.connect("web"), d.connect("web"), d.connect("web")}
	random := rand.New(rand.NewPCG(1, 2))
	var last stamp
	var rounds []round
	acked := 0
	halfway, ended := make(chan struct{}), make(chan error)
	go func() {
		for {
			r, perform := newRound(random, blocks, &last, connections)
			rounds = append(rounds, r)
			if err := perform(); err != nil {
				ended <- err
				return
			}
			if acked++; acked == 20 {
				close(halfway)
			}
		}
	}()
	<-halfway
	checkpoints := d.checkpoints()
	d.stop()
	err := <-ended
	var request *client.RequestError
	if !errors.As(err, &request) {
		t.Fatalf("the writer ended with %v", err)
	}

	d = serve(t, data)
	if n := d.checkpoints(); n <= checkpoints {
		t.Errorf("%d checkpoints before the stop and %d after it", checkpoints, n)
	} else {
		checkpoints = n
	}
	c := d.connect("web")
	got, err := readImage(c)
	must(t, err, "read the volume")
	must(t, prefix(make(image, blocks), rounds, got, acked, len(rounds)), "after the stop, with %d rounds acknowledged", acked)
	must(t, write(c, make([]byte, block.Size), 0), "write")
	d.kill()

	d = serve(t, data)
	if n := d.checkpoints(); n != checkpoints {
		t.Errorf("%d checkpoints before the kill and %d after it", checkpoints, n)
	}
}

// Nobody's disk changes under their feet: a rollback is refused while a connection
// is open that has written, and cuts it off if forced.
func TestRollbackUnderAConnection(t *testing.T) {
	t.Parallel()
	d := serve(t, filepath.Join(scratch(t), "d"))
	d.varve("volume", "create", "web", "--size", "1M")
	before, after := make([]byte, block.Size), make([]byte, block.Size)
	fill(before, 0, 1)
	fill(after, 0, 2)
	holds := func(c *client.Client, want []byte) {
		t.Helper()
		got, err := read(c, 0, block.Size)
		must(t, err, "read")
		if !slices.Equal(got, want) {
			t.Fatal("the volume does not hold what it should")
		}
	}

	writer := d.connect("web")
	must(t, write(writer, before, 0), "write")
	d.varve("snapshot", "create", "web", "--name", "one")
	must(t, write(writer, after, 0), "write")
	reader := d.connect("web")
	holds(reader, after)
	d.refused(4, "in use", "snapshot", "rollback", "web@one")
	holds(writer, after)
	if made := ask[[]contract.Snapshot](d, "snapshot", "list"); len(made) != 1 {
		t.Fatalf("a refused rollback left %d snapshots", len(made))
	}

	kept := ask[contract.Rollback](d, "snapshot", "rollback", "web@one", "--force").Kept
	wantDisconnected(t, writer)
	holds(reader, before)
	holds(d.connect("web"), before)
	holds(d.connect("web@"+kept.Name), after)

	// One that has ended, or has only read, is not in the way.
	writer = d.connect("web")
	must(t, write(writer, after, 0), "write")
	must(t, writer.Close(), "close")
	d.varve("snapshot", "rollback", "web@"+kept.Name)
	holds(reader, after)
}

// A command that waits for a job when its daemon is killed and started again ends, and says so.
func TestACommandWhoseDaemonIsStartedAgain(t *testing.T) {
	t.Parallel()
	data := filepath.Join(scratch(t), "d")
	d := serve(t, data)
	d.varve("repo", "init", "home", filepath.Join(scratch(t), "repo"), "--no-encryption")
	d.varve("volume", "create", "web", "--size", "4M")
	noise := make([]byte, 4<<20)
	rand.NewChaCha8([32]byte{}).Read(noise)
	must(t, write(d.connect("web"), noise, 0), "write")
	ended := make(chan outcome, 1)
	go func() { ended <- d.try("backup", "create", "web", "--repo", "home", "--limit", "64K") }()
	await(t, "a backup is made", func() bool { return len(ask[[]contract.Snapshot](d, "snapshot", "list")) > 0 })
	d.kill()
	serve(t, data)
	o := <-ended
	first, _, _ := strings.Cut(o.stderr, "\n")
	if o.status != 1 || !strings.Contains(first, "daemon") {
		t.Fatalf("status %d, %v: %s", o.status, o.err, o.stderr)
	}
}
