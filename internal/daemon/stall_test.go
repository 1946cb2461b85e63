package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/contract"
	"varve/internal/objects/s3/s3test"
)

// mustInitInBucket makes a repository in a bucket, at the end of a line that the test can stall.
func (d *Daemon) mustInitInBucket(t *testing.T, name string) *s3test.Proxy {
	t.Helper()
	server := s3test.Start(t, s3test.Options{})
	server.Bucket("bucket", s3test.Plain)
	line := s3test.NewProxy(t, server.Address, 0)
	secret := filepath.Join(scratch(t), "secret")
	if err := os.WriteFile(secret, []byte(server.SecretKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := contract.InitRepository{Name: name, NoEncryption: true, ChunkSize: 64 << 10, Access: contract.RepositoryAccess{
		URL: "s3://" + line.Address + "/bucket", S3: &contract.S3{AccessKey: server.AccessKey, SecretKeyFile: secret, PlainHTTP: true, Region: "us-east-1"},
	}}
	if _, err := d.InitRepository(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	return line
}

// TestStalledRepository: nobody waits for a bucket that does not answer but who needs just this one, and the daemon stops all the same.
func TestStalledRepository(t *testing.T) {
	d, err := Start(t.Context(), Config{DataDir: scratch(t)})
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	defer func() {
		if !stopped {
			d.Stop(context.Background())
		}
	}()
	line := d.mustInitInBucket(t, "away")
	d.mustInit(t, "home")
	d.mustCreate(t, "web")
	content := d.noise(t, "web")
	there := d.mustBackUpOne(t, "web", "away", "")
	same(t, "the backup in the bucket", d.backedUp(t, there.ID), content)
	here := d.mustBackUpOne(t, "web", "home", "")

	known, err := d.repositories.named("away")
	if err != nil {
		t.Fatal(err)
	}
	open := func() *openRepository {
		d.repositories.mu.Lock()
		defer d.repositories.mu.Unlock()
		return known.open
	}
	before := open()
	line.Stall(true)
	within := func(limit time.Duration, what string, do func()) {
		t.Helper()
		began := time.Now()
		do()
		if took := time.Since(began); took > limit {
			t.Errorf("%s takes %s", what, took)
		}
	}
	within(5*time.Second, "status", func() { d.Status() })
	within(5*time.Second, "a backup elsewhere", func() { d.mustBackUpOne(t, "web", "home", "") })
	within(5*time.Second, "opening a backup that lies elsewhere", func() { same(t, "it", d.content(t, backupPrefix+here.ID), content) })
	within(listPatience+5*time.Second, "listing", func() {
		if found, err := d.Backups(t.Context(), "", ""); err != nil || len(found) != 2 {
			t.Errorf("%v, %v", found, err)
		}
	})
	within(listPatience+5*time.Second, "repo list", func() {
		all, err := d.Repositories(t.Context())
		if err != nil || len(all) != 2 || all[0].State != contract.RepositoryAbsent {
			t.Errorf("%+v, %v", all, err)
		}
	})
	if w := strings.Join(d.Status().Warnings, "\n"); !strings.Contains(w, "away is pending") {
		t.Errorf("warnings: %s", w)
	}
	if open() != before {
		t.Error("who does not wait for a repository has it opened anew")
	}
	if _, err := d.CreateBackup(t.Context(), contract.CreateBackup{Volumes: []string{"web"}, Repo: "away"}); err != nil {
		t.Fatal(err)
	}
	stopped = true
	within(listPatience+tidyPatience, "stopping", func() {
		if err := d.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// TestRepositoryThatStallsInABackup: the daemon stops all the same, and leaves nothing of it.
func TestRepositoryThatStallsInABackup(t *testing.T) {
	dir := scratch(t)
	d, err := Start(t.Context(), Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	line := d.mustInitInBucket(t, "away")
	d.mustCreate(t, "web")
	d.noise(t, "web")
	job, err := d.CreateBackup(t.Context(), contract.CreateBackup{Volumes: []string{"web"}, Repo: "away", Limit: slowly})
	if err != nil {
		t.Fatal(err)
	}
	for sent := line.Moved(s3test.Up); line.Moved(s3test.Up) < sent+128<<10; {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("nothing is sent")
		}
	}
	line.Stall(true)
	began := time.Now()
	if err := d.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 3*tidyPatience {
		t.Errorf("stopping takes %s", took)
	}
	if view, err := d.Job(job.ID); err != nil || view.State != contract.JobCancelled {
		t.Errorf("%+v, %v", view, err)
	}
	line.Stall(false)
	d = start(t, dir)
	d.wantNoSnapshots(t)
	b := d.mustBackUpOne(t, "web", "away", "")
	d.wantBookmarks(t, "web", "away", b.ID) // what could not be looked for when it stopped goes now
	same(t, "the backup", d.backedUp(t, b.ID), d.content(t, "web"))
}

// TestFileSystemThatDoesNotAnswer: status says so, however often it is asked, and waits for nobody.
func TestFileSystemThatDoesNotAnswer(t *testing.T) {
	d := start(t, scratch(t))
	dir := d.mustInit(t, "disk")
	server, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0) // who is asked, and never answers
	if err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server)
	if err := unix.Mount("nobody", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		unix.Close(server)
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	defer unix.Close(server) // ends all that wait
	for range 2 {
		began := time.Now()
		warnings := strings.Join(d.Status().Warnings, "\n")
		if took := time.Since(began); took > 5*directoryPatience || !strings.Contains(warnings, "disk is pending") || !strings.Contains(warnings, "does not answer") {
			t.Errorf("after %s: %s", took, warnings)
		}
	}
}
