package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"varve/internal/contract"
	"varve/internal/nbd/client"
	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

func (d *Daemon) mustDescribe(t *testing.T, name string) contract.Repository {
	t.Helper()
	r, err := d.Repository(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestRepositoriesAreKnownAgain: after a restart, by their UUIDs, under the names that they have by then.
func TestRepositoriesAreKnownAgain(t *testing.T) {
	dir := scratch(t)
	d, err := Start(t.Context(), Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	where := d.mustInit(t, "home")
	d.mustCreate(t, "web")
	d.put(t, "web", 1, 0)
	full := d.mustBackUpOne(t, "web", "home", "")
	r, err := d.ChangeRepository(t.Context(), "home", contract.ChangeRepository{Name: "cellar"})
	if err != nil || r.Name != "cellar" || r.Backups != 1 {
		t.Fatalf("renamed: %+v, %v", r, err)
	}
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	d = start(t, dir)
	all, err := d.Repositories(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	r = all[0]
	if r.Name != "cellar" || r.URL != where || r.State != contract.RepositoryAvailable || r.Backups != 1 || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "same device") {
		t.Fatalf("after a restart: %+v", r)
	}
	d.put(t, "web", 2, 1)
	b := d.mustBackUpOne(t, "web", "cellar", "")
	wantType(t, b, contract.BackupIncremental, full.ID, "")
	if shown := d.mustDescribe(t, "cellar"); shown.Usage == nil || shown.Usage.Objects == 0 || shown.Backups != 2 {
		t.Fatalf("shown: %+v", shown)
	}
}

// TestRepositoriesThatAreRefused: names, places, and the same one twice.
func TestRepositoriesThatAreRefused(t *testing.T) {
	d := start(t, scratch(t))
	where := d.mustInit(t, "home")
	initiate := func(name, url string) error {
		_, err := d.InitRepository(t.Context(), contract.InitRepository{Name: name, Access: contract.RepositoryAccess{URL: url}, NoEncryption: true})
		return err
	}
	add := func(name, url string, force bool) error {
		_, err := d.AddRepository(t.Context(), contract.AddRepository{Name: name, Access: contract.RepositoryAccess{URL: url}, Force: force})
		return err
	}
	elsewhere := filepath.Join(scratch(t), "other")
	wantCode(t, initiate("in", filepath.Join(d.dir, "repo")), contract.CodeRefused)
	wantCode(t, add("in", filepath.Join(d.dir, "repo"), true), contract.CodeRefused)
	wantCode(t, initiate("home", elsewhere), contract.CodeRefused)
	wantCode(t, initiate("Home!", elsewhere), contract.CodeUsage)
	wantCode(t, initiate("again", where), contract.CodeRefused)
	wantCode(t, add("again", where, false), contract.CodeRefused)
	wantCode(t, add("none", elsewhere, false), contract.CodeNotFound)
	if _, err := os.Stat(elsewhere); err == nil {
		t.Error("something was made where a repository was refused")
	}
	wantCode(t, d.RemoveRepository(t.Context(), "none"), contract.CodeNotFound)
	_, err := d.CreateBackup(t.Context(), contract.CreateBackup{Volumes: []string{"web"}, Repo: "none"})
	wantCode(t, err, contract.CodeNotFound)
	if all, err := d.Repositories(t.Context()); err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
}

// TestAnotherRepositoryIsRefused at the place of the one that is known, and so is one with another key.
func TestAnotherRepositoryIsRefused(t *testing.T) {
	d := start(t, scratch(t))
	where := d.mustInit(t, "home")
	d.mustCreate(t, "web")
	if err := os.RemoveAll(where); err != nil {
		t.Fatal(err)
	}
	other := start(t, scratch(t))
	other.mustInitIn(t, "home", where)
	if r := d.mustDescribe(t, "home"); r.State != contract.RepositoryFailed || !strings.Contains(r.Reason, "another repository") {
		t.Fatalf("another repository: %+v", r)
	}
	job, err := d.CreateBackup(t.Context(), contract.CreateBackup{Volumes: []string{"web"}, Repo: "home"})
	if err != nil {
		t.Fatal(err)
	}
	if job = d.ended(t, job.ID); job.State != contract.JobFailed || job.Error.Code != contract.CodeRefused {
		t.Fatalf("backup to another repository: %+v", job)
	}
	d.wantNoSnapshots(t)
	if warnings := strings.Join(d.Status().Warnings, "\n"); !strings.Contains(warnings, "repository home cannot be used") {
		t.Errorf("status warns: %s", warnings)
	}
	if err := d.RemoveRepository(t.Context(), "home"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.AddRepository(t.Context(), contract.AddRepository{Name: "home", Access: contract.RepositoryAccess{URL: where}}); err != nil {
		t.Fatal(err)
	}
	d.mustBackUpOne(t, "web", "home", "")
}

// TestAnotherRepositoryInTheSameDirectory is noticed by who has the one open that was there.
func TestAnotherRepositoryInTheSameDirectory(t *testing.T) {
	d, other := start(t, scratch(t)), start(t, scratch(t))
	where, elsewhere := d.mustInit(t, "home"), other.mustInit(t, "home")
	d.mustCreate(t, "web")
	d.noise(t, "web")
	d.mustBackUpOne(t, "web", "home", "")
	for _, move := range [][2]string{{where, where + ".was"}, {elsewhere, where}} {
		if err := os.MkdirAll(move[1], 0o700); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(move[0])
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if err := os.Rename(filepath.Join(move[0], e.Name()), filepath.Join(move[1], e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	job, err := d.CreateBackup(t.Context(), contract.CreateBackup{Volumes: []string{"web"}, Repo: "home"})
	if err != nil {
		t.Fatal(err)
	}
	if job = d.ended(t, job.ID); job.State != contract.JobFailed || job.Error.Code != contract.CodeRefused {
		t.Fatalf("backup to another repository: %+v", job)
	}
	d.wantNoSnapshots(t)
	if packs := objectsOf(t, where, "packs/*/*"); len(packs) > 0 {
		t.Errorf("it was written to: %v", packs)
	}
}

// TestRepositoryGoesAndComes: one that is not there is pending and stands in nobody's way; when it is back the next backup finds what it needs.
func TestRepositoryGoesAndComes(t *testing.T) {
	dir := scratch(t)
	d, err := Start(t.Context(), Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	where := d.mustInit(t, "disk")
	d.mustInit(t, "home")
	d.mustCreate(t, "web")
	d.put(t, "web", 1, 0)
	full := d.mustBackUpOne(t, "web", "disk", "")
	pulled := where + ".pulled"
	gone := func(d *Daemon) {
		t.Helper()
		r := d.mustDescribe(t, "disk")
		if r.State != contract.RepositoryAbsent || r.ID == "" || r.Reason == "" {
			t.Fatalf("it is not there: %+v", r)
		}
		s := d.Status()
		if warnings := strings.Join(s.Warnings, "\n"); !strings.Contains(warnings, "repository disk is pending") || len(s.Problems) > 0 {
			t.Fatalf("status: %v, %v", s.Warnings, s.Problems)
		}
		job, err := d.CreateBackup(t.Context(), contract.CreateBackup{Volumes: []string{"web"}, Repo: "disk"})
		if err != nil {
			t.Fatal(err)
		}
		if job = d.ended(t, job.ID); job.State != contract.JobFailed || job.Error.Code != contract.CodeNotFound {
			t.Fatalf("backup to what is not there: %+v", job)
		}
		d.wantNoSnapshots(t)
		if found, err := d.Backups(t.Context(), "", ""); err != nil || len(found) != 0 {
			t.Fatalf("backups: %v, %v", found, err)
		}
		_, err = d.Backup(t.Context(), "", full.ID)
		if wantCode(t, err, contract.CodeNotFound); !strings.Contains(err.Error(), "disk cannot be asked") {
			t.Fatal(err)
		}
	}
	if err := os.Rename(where, pulled); err != nil {
		t.Fatal(err)
	}
	gone(d)
	if err := os.Mkdir(where, 0o700); err != nil { // as where nothing is mounted
		t.Fatal(err)
	}
	if r := d.mustDescribe(t, "disk"); r.State != contract.RepositoryAbsent {
		t.Fatalf("the place is empty: %+v", r)
	}
	if err := os.Remove(where); err != nil {
		t.Fatal(err)
	}
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	d = start(t, dir)
	gone(d)
	if err := os.CopyFS(where, os.DirFS(pulled)); err != nil {
		t.Fatal(err)
	}
	d.put(t, "web", 2, 1)
	wantType(t, d.mustBackUpOne(t, "web", "disk", ""), contract.BackupIncremental, full.ID, "")
	if warnings := strings.Join(d.Status().Warnings, "\n"); strings.Contains(warnings, "pending") {
		t.Fatalf("status: %s", warnings)
	}
}

// TestAddedBeforeItIsThere: with force a repository is known that has never been reached, and is what is found there first.
func TestAddedBeforeItIsThere(t *testing.T) {
	d := start(t, scratch(t))
	where := filepath.Join(scratch(t), "later")
	r, err := d.AddRepository(t.Context(), contract.AddRepository{Name: "later", Access: contract.RepositoryAccess{URL: where}, Force: true})
	if err != nil || r.State != contract.RepositoryAbsent || r.ID != "" {
		t.Fatalf("%+v, %v", r, err)
	}
	other := start(t, scratch(t))
	other.mustInitIn(t, "home", where)
	found := d.mustDescribe(t, "later")
	if found.State != contract.RepositoryAvailable || found.ID != other.mustDescribe(t, "home").ID {
		t.Fatalf("%+v", found)
	}
	k, err := d.repositories.named("later")
	if err != nil || d.repositories.now(k).ID.String() != found.ID {
		t.Fatal("what was found is not remembered")
	}
}

// TestKeys: what opens a repository can be changed, and its place is no secret's.
func TestKeys(t *testing.T) {
	dir, safe := scratch(t), scratch(t)
	first, second := filepath.Join(safe, "first"), filepath.Join(safe, "second")
	for name, secret := range map[string]string{first: "correct horse", second: "battery staple"} {
		if err := os.WriteFile(name, []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d, err := Start(t.Context(), Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	stop := func() {
		if err := d.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	access := contract.RepositoryAccess{URL: filepath.Join(scratch(t), "repo"), PasswordFile: first}
	r, err := d.InitRepository(t.Context(), contract.InitRepository{Name: "home", Access: access})
	if err != nil || r.Encryption != contract.EncryptionAESGCM {
		t.Fatalf("%+v, %v", r, err)
	}
	d.mustCreate(t, "web")
	d.put(t, "web", 1, 0)
	full := d.mustBackUpOne(t, "web", "home", "")
	key, err := d.AddRepositoryKey(t.Context(), "home", contract.AddKey{PasswordFile: second, Label: "spare"})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.RotateRepositoryKeys(t.Context(), "home"); err != nil {
		t.Fatal(err)
	}
	d.put(t, "web", 2, 1)
	b := d.mustBackUpOne(t, "web", "home", "")
	wantType(t, b, contract.BackupIncremental, full.ID, "")
	same(t, "the backup", d.backedUp(t, b.ID), d.content(t, "web"))
	keys, err := d.RepositoryKeys(t.Context(), "home")
	if err != nil || len(keys) != 2 {
		t.Fatal(keys, err)
	}
	if text, err := d.ExportRepositoryKeys(t.Context(), "home"); err != nil || text.Text == "" {
		t.Fatal(text, err)
	}
	if err := d.RemoveRepositoryKey(t.Context(), "home", key.ID); err != nil {
		t.Fatal(err)
	}
	k, err := d.repositories.named("home")
	if err != nil {
		t.Fatal(err)
	}
	if revision := d.repositories.now(k).KeysRevision; revision != 4 {
		t.Errorf("keys of revision %d are remembered", revision)
	}
	stop()
	file, err := os.ReadFile(filepath.Join(dir, repositoriesFile))
	if err != nil || strings.Contains(string(file), "correct horse") || !strings.Contains(string(file), first) {
		t.Fatalf("what is remembered: %s, %v", file, err)
	}

	if err := os.Rename(first, first+".away"); err != nil {
		t.Fatal(err)
	}
	d, err = Start(t.Context(), Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if r := d.mustDescribe(t, "home"); r.State == contract.RepositoryAvailable {
		t.Fatalf("it is open without its secret: %+v", r)
	}
	if err := os.Rename(first+".away", first); err != nil {
		t.Fatal(err)
	}
	if r := d.mustDescribe(t, "home"); r.State != contract.RepositoryAvailable || r.Backups != 2 {
		t.Fatalf("with its secret: %+v", r)
	}
}

// TestOlderKeysAreRefused: a ring that is older than one that was seen is somebody's who puts old objects back.
func TestOlderKeysAreRefused(t *testing.T) {
	d := start(t, scratch(t))
	secret := filepath.Join(scratch(t), "secret")
	if err := os.WriteFile(secret, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	access := contract.RepositoryAccess{URL: filepath.Join(scratch(t), "repo"), PasswordFile: secret}
	if _, err := d.InitRepository(t.Context(), contract.InitRepository{Name: "home", Access: access}); err != nil {
		t.Fatal(err)
	}
	older := filepath.Join(scratch(t), "older")
	if err := os.CopyFS(older, os.DirFS(access.URL)); err != nil {
		t.Fatal(err)
	}
	if err := d.RotateRepositoryKeys(t.Context(), "home"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.RemoveAll(access.URL), os.Rename(older, access.URL)); err != nil {
		t.Fatal(err)
	}
	if r := d.mustDescribe(t, "home"); r.State != contract.RepositoryFailed || !strings.Contains(r.Reason, "revision") {
		t.Fatalf("%+v", r)
	}
}

// TestFileOfRepositories is replaced at once, at whatever operation the machine stops, and durable when it is said to be.
func TestFileOfRepositories(t *testing.T) {
	before := []repositoryEntry{{Name: "a", ID: uuid.New(), Access: contract.RepositoryAccess{URL: "/a"}, AddedAt: contract.Time{Time: time.Unix(1, 0).UTC()}}}
	after := append(before[:1:1], repositoryEntry{Name: "b", Access: contract.RepositoryAccess{URL: "/b", PasswordFile: "/secret"}, AddedAt: contract.Time{Time: time.Unix(2, 0).UTC()}})
	names := func(entries []repositoryEntry) (out string) {
		for _, e := range entries {
			out += e.Name + e.ID.String() + e.Access.PasswordFile
		}
		return out
	}
	for stop := 1; ; stop++ {
		fsys := crashfs.New()
		if err := fsys.Mkdir("/data"); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(fsys.SyncDir("/"), saveRepositories(fsys, "/data", before)); err != nil {
			t.Fatal(err)
		}
		fsys.CrashAt(stop)
		saved := saveRepositories(fsys, "/data", after)
		for _, policy := range []crashfs.Policy{crashfs.KeepAll, crashfs.DropAll, crashfs.Torn, crashfs.Random(uint64(stop))} {
			left := fsys.CrashImage(policy)
			found, err := loadRepositories(left, "/data")
			if err != nil {
				t.Fatalf("crash at operation %d: %v", stop, err)
			}
			if got := names(found); got != names(after) && (saved == nil || got != names(before)) {
				t.Fatalf("crash at operation %d: %q is left", stop, got)
			}
			if err := saveRepositories(left, "/data", after); err != nil {
				t.Fatalf("after a crash at operation %d: %v", stop, err)
			}
		}
		if saved == nil {
			return
		}
	}
}

// TestFileOfRepositoriesThatIsNotKnown: the daemon serves its volumes, says so, and leaves the file as it is.
func TestFileOfRepositoriesThatIsNotKnown(t *testing.T) {
	for _, content := range []string{`{"version": 2, "places": []}`, `{"version": `, ""} {
		dir := scratch(t)
		d, err := Start(t.Context(), Config{DataDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, repositoriesFile)
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		d = start(t, dir)
		d.mustCreate(t, "web")
		if problems := strings.Join(d.Status().Problems, "\n"); !strings.Contains(problems, repositoriesFile) {
			t.Errorf("problems: %s", problems)
		}
		if _, err := d.InitRepository(t.Context(), contract.InitRepository{Name: "home", Access: contract.RepositoryAccess{URL: filepath.Join(scratch(t), "r")}, NoEncryption: true}); err == nil {
			t.Error("a repository is known")
		}
		if _, err := d.Repositories(t.Context()); err == nil {
			t.Error("none is listed, and nothing is said")
		}
		if left, err := os.ReadFile(name); err != nil || string(left) != content {
			t.Errorf("left: %q, %v", left, err)
		}
	}
}

// TestRemovedRepository: it stays as it is, its exports are closed, and who works with it stands in the way.
func TestRemovedRepository(t *testing.T) {
	d := start(t, scratch(t))
	where := d.mustInit(t, "home")
	d.mustCreate(t, "web")
	d.put(t, "web", 1, 0)
	b := d.mustBackUpOne(t, "web", "home", "")
	c := dial(t, d, "backup/"+b.ID)
	k, err := d.repositories.named("home")
	if err != nil {
		t.Fatal(err)
	}
	u, err := d.repositories.use(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, d.RemoveRepository(t.Context(), "home"), contract.CodeRefused)
	if err := c.ReadAt(t.Context(), make([]byte, 512), 0); err != nil {
		t.Fatalf("the export is cut off for nothing: %v", err)
	}
	u.done()
	if err := d.RemoveRepository(t.Context(), "home"); err != nil {
		t.Fatal(err)
	}
	if err := c.ReadAt(t.Context(), make([]byte, 512), 0); !errors.Is(err, client.ErrDisconnected) {
		t.Fatalf("read from a forgotten repository: %v", err)
	}
	if _, err := d.AddRepository(t.Context(), contract.AddRepository{Name: "again", Access: contract.RepositoryAccess{URL: where}}); err != nil {
		t.Fatal(err)
	}
	d.put(t, "web", 2, 1)
	wantType(t, d.mustBackUpOne(t, "web", "again", ""), contract.BackupIncremental, b.ID, "")
}

// TestCheckAndPrune: they are jobs, whose results tell what they did; damage is code damaged.
func TestCheckAndPrune(t *testing.T) {
	d := start(t, scratch(t))
	where := d.mustInit(t, "home")
	d.mustCreate(t, "web")
	d.noise(t, "web")
	b := d.mustBackUpOne(t, "web", "home", "")
	ended := func(job contract.Job, err error) contract.Job {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return d.ended(t, job.ID)
	}
	if job := ended(d.CheckRepository(t.Context(), "home", contract.CheckRepository{})); job.State != contract.JobDone || job.Result.RepoCheck.Objects == 0 || job.Result.RepoCheck.Repository != "home" {
		t.Fatalf("check: %+v", job)
	}
	if job := ended(d.PruneRepository(t.Context(), "home", contract.PruneRepository{})); job.State != contract.JobDone || job.Result.RepoPrune == nil {
		t.Fatalf("prune: %+v", job)
	}
	packs, err := filepath.Glob(filepath.Join(where, "packs", "*", "*"))
	if err != nil || len(packs) == 0 {
		t.Fatal(packs, err)
	}
	for _, name := range packs {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	job := ended(d.CheckRepository(t.Context(), "home", contract.CheckRepository{}))
	if job.State != contract.JobFailed || job.Error.Code != contract.CodeDamaged || len(job.Result.RepoCheck.Harmed) != 1 || job.Result.RepoCheck.Harmed[0].ID != b.ID {
		t.Fatalf("check of damage: %+v", job)
	}
	if all, err := d.Backups(t.Context(), "home", ""); err != nil || all[0].State != contract.BackupDamaged {
		t.Fatalf("backups: %+v, %v", all, err)
	}
	again := d.mustBackUpOne(t, "web", "home", "")
	wantType(t, again, contract.BackupFull, "", "something is lost")
	same(t, "the next backup", d.backedUp(t, again.ID), d.content(t, "web"))
}

// TestKeysChangedElsewhere: who has a repository open notices that another host has rotated its keys.
func TestKeysChangedElsewhere(t *testing.T) {
	d, other := start(t, scratch(t)), start(t, scratch(t))
	secret := filepath.Join(scratch(t), "secret")
	if err := os.WriteFile(secret, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	access := contract.RepositoryAccess{URL: filepath.Join(scratch(t), "repo"), PasswordFile: secret}
	if _, err := d.InitRepository(t.Context(), contract.InitRepository{Name: "home", Access: access}); err != nil {
		t.Fatal(err)
	}
	if _, err := other.AddRepository(t.Context(), contract.AddRepository{Name: "shared", Access: access}); err != nil {
		t.Fatal(err)
	}
	for _, on := range []*Daemon{d, other} {
		on.mustCreate(t, "web")
		on.noise(t, "web")
	}
	d.mustBackUpOne(t, "web", "home", "")
	if err := other.RotateRepositoryKeys(t.Context(), "shared"); err != nil {
		t.Fatal(err)
	}
	theirs := other.mustBackUpOne(t, "web", "shared", "")
	same(t, "what another host has stored with its new keys", d.backedUp(t, theirs.ID), other.content(t, "web"))
}

// TestRenamedWhileItIsForgotten: it is not known under the new name either, now or after a restart.
func TestRenamedWhileItIsForgotten(t *testing.T) {
	d := start(t, scratch(t))
	d.mustInit(t, "home")
	k, err := d.repositories.named("home")
	if err != nil {
		t.Fatal(err)
	}
	u, err := d.repositories.use(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	forgotten := make(chan error, 1)
	go func() { forgotten <- d.RemoveRepository(context.Background(), "home") }()
	is := func(so func() bool) func() bool {
		return func() bool {
			d.repositories.mu.Lock()
			defer d.repositories.mu.Unlock()
			return so()
		}
	}
	await(t, "it is being forgotten", is(func() bool { return k.leaving != nil }))
	renamed := make(chan error, 1)
	go func() {
		_, err := d.ChangeRepository(context.Background(), "home", contract.ChangeRepository{Name: "work"})
		renamed <- err
	}()
	await(t, "it is renamed", is(func() bool { return k.entry.Name == "work" }))
	u.done()
	if err := errors.Join(<-renamed, <-forgotten); err != nil {
		t.Fatal(err)
	}
	if entries, err := loadRepositories(vfs.OS(), d.dir); err != nil || len(entries) > 0 {
		t.Errorf("known: %+v, %v", entries, err)
	}
}
