// Package recovery holds what proves that a repository can be read without the program that wrote it: recover.py, which knows nothing but the
// format's description, and golden repositories, which every later version has to read.
package recovery

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/uuid"

	"varve/internal/backup"
	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/contract"
	"varve/internal/depot"
	"varve/internal/repository"
)

var update = flag.Bool("update", false, "make the golden repositories anew; only for a format that was never released")

// golden is a repository in testdata: NAME, and NAME.json with what its backups have to hold.
type golden struct {
	Name string
	Init contract.InitRepository
	Open []contract.RepositoryAccess // ways to open it, relative to testdata
}

var goldens = []golden{
	{
		Name: "encrypted",
		Init: contract.InitRepository{Recipients: []string{"age1g7y2ck4qv9aym32pr4x9fqln2gryhqajkdr6uxuscaluvmchq3ks5knrzv"}, ChunkSize: 64 << 10},
		Open: []contract.RepositoryAccess{{PasswordFile: "passphrase"}, {IdentityFiles: []string{"identity"}}},
	},
	{
		Name: "plain",
		Init: contract.InitRepository{NoEncryption: true, Dedup: contract.DedupSet, ChunkSize: 128 << 10},
		Open: []contract.RepositoryAccess{{}},
	},
}

// held is what a backup has to hold.
type held struct {
	ID     string `json:"id"`
	Type   string `json:"type"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

func TestMain(m *testing.M) {
	flag.Parse()
	if *update {
		for _, g := range goldens {
			if err := g.make(); err != nil {
				fmt.Fprintln(os.Stderr, g.Name, err)
				os.Exit(1)
			}
		}
	}
	os.Exit(m.Run())
}

// access is one of the ways to open the repository, as a copy at dir.
func (g golden) access(dir string, way contract.RepositoryAccess) contract.RepositoryAccess {
	there := func(name string) string {
		abs, err := filepath.Abs(filepath.Join("testdata", name))
		if err != nil {
			panic(err)
		}
		return abs
	}
	a := contract.RepositoryAccess{URL: dir}
	if way.PasswordFile != "" {
		a.PasswordFile = there(way.PasswordFile)
	}
	for _, f := range way.IdentityFiles {
		a.IdentityFiles = append(a.IdentityFiles, there(f))
	}
	return a
}

// make writes the repository: a volume that changes, grows and shrinks, backed up in each way, often enough that
// regions have several chunks.
func (g golden) make() error {
	ctx := context.Background()
	dir, err := filepath.Abs(filepath.Join("testdata", g.Name))
	if err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	g.Init.Access = g.access(dir, g.Open[0])
	d, err := depot.Init(ctx, g.Init, depot.Options{})
	if err != nil {
		return err
	}
	defer d.Close()
	random := rand.New(rand.NewChaCha8([32]byte{1}))
	disk := make([]byte, 9<<20+3*block.SectorSize)
	fill := func(off, length int) {
		for i := off; i < off+length; i += 64 {
			copy(disk[i:min(i+64, len(disk))], fmt.Sprintf("%064x", random.Uint32N(1<<16)))
		}
	}
	fill(0, 300<<10)
	fill(1<<20, 64<<10)
	for i := range 8 << 10 { // what does not shrink
		disk[5<<20+i] = byte(random.Uint32())
	}
	fill(9<<20, 3*block.SectorSize)
	volume := uuid.MustParse("0b0e7a3c-5d9e-4b6e-9f5a-3c1d2e4f5a6b")
	var all []held
	for round, want := range []backup.Want{
		backup.WantFull, backup.WantIncremental, backup.WantDifferential, backup.WantIncremental, backup.WantIncremental, backup.WantIncremental,
		backup.WantIncremental, backup.WantIncremental, backup.WantDifferential, backup.WantFull,
	} {
		if round > 0 {
			for range 6 {
				at := int(random.Uint32N(64)) * block.Size
				fill(at, block.Size)
			}
			clear(disk[round*8*block.Size : round*8*block.Size+2*block.Size])
		}
		switch round {
		case 4:
			disk = append(disk, make([]byte, 1<<20)...)
		case 6:
			disk = disk[:6<<20+block.SectorSize]
		}
		h, err := backUp(ctx, d.Repo(), volume, disk, want)
		if err != nil {
			return err
		}
		all = append(all, h)
	}
	// One that is deleted is not there, and nobody needs it.
	if _, err := d.Delete(ctx, []string{all[1].ID}); err != nil {
		return err
	}
	all = slices.Delete(all, 1, 2)
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(dir+".json", append(text, '\n'), 0o644)
}

func backUp(ctx context.Context, repo *repository.Repo, volume uuid.UUID, content []byte, want backup.Want) (h held, err error) {
	disk, err := memdisk.New(int64(len(content)))
	if err != nil {
		return h, err
	}
	op := &block.Op{Kind: block.OpWrite, Data: content, Length: int64(len(content))}
	disk.Submit(ctx, []*block.Op{op})
	if op.Err != nil {
		return h, op.Err
	}
	existing, _, err := repo.Backups(ctx)
	if err != nil {
		return h, err
	}
	c := backup.Choose(want, volume, existing, func(repository.Listed) (string, bool) { return "", true })
	s := &backup.Source{Device: disk, Volume: "golden", VolumeID: volume, Name: "golden", Consistency: "crash", Type: c.Type, Reason: c.Reason}
	if c.Base != nil {
		s.Base = &c.Base.Backup
	}
	rec, err := backup.Create(ctx, repo, []*backup.Source{s}, backup.Options{Program: "varve", Host: "golden"})
	if err != nil {
		return h, err
	}
	sum := sha256.Sum256(content)
	return held{ID: rec.Backups[0].ID, Type: c.Type.String(), Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}, nil
}

// load is what the backups have to hold, and a copy of the repository, since opening one writes to it.
func (g golden) load(t *testing.T) (dir string, all []held) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), g.Name)
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", g.Name))); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join("testdata", g.Name+".json"))
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir, all
}

func sumOf(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Every version reads, verifies and restores the golden repositories, with each of their keys.
func TestGoldenRepositoriesAreRestored(t *testing.T) {
	for _, g := range goldens {
		dir, all := g.load(t)
		for _, way := range g.Open {
			d, err := depot.Open(t.Context(), g.access(dir, way), depot.Options{})
			if err != nil {
				t.Fatal(g.Name, err)
			}
			listed, warnings, err := d.Backups(t.Context(), "")
			if err != nil || len(warnings) > 0 || len(listed) != len(all) {
				t.Fatal(g.Name, listed, warnings, err)
			}
			for i, h := range all {
				if listed[i].ID != h.ID || listed[i].Type != h.Type || listed[i].Size != h.Size || listed[i].State != contract.BackupGood {
					t.Errorf("%s: %+v, want %+v", g.Name, listed[i], h)
				}
				if _, err := d.Verify(t.Context(), []string{h.ID}, nil); err != nil {
					t.Error(g.Name, h.ID, err)
				}
				file := filepath.Join(t.TempDir(), "disk")
				if _, err := d.RestoreFile(t.Context(), contract.RestoreBackup{Backup: h.ID, ToFile: file}, nil); err != nil {
					t.Fatal(g.Name, h.ID, err)
				}
				if got := sumOf(t, file); got != h.SHA256 {
					t.Errorf("%s: backup %s is %s, want %s", g.Name, h.ID, got, h.SHA256)
				}
			}
			d.Close()
		}
	}
}

// python runs recover.py.
func python(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("python3", append([]string{"recover.py"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("recover.py %v: %v (it needs python3-cryptography and zstd)\n%s", args, err, stderr.Bytes())
	}
	return out
}

// What docs/recovery.md says suffices: a program that knows the description of the format alone restores every backup, also where
// packs have gone elsewhere and copies of small objects are damaged.
func TestRecoveryNeedsOnlyTheFormat(t *testing.T) {
	for _, g := range goldens {
		dir, all := g.load(t)
		for i, way := range g.Open {
			a := g.access(dir, way)
			var open []string
			if a.PasswordFile != "" {
				open = append(open, "--password-file", a.PasswordFile)
			}
			for _, f := range a.IdentityFiles {
				open = append(open, "--identity-file", f)
			}
			if i == len(g.Open)-1 {
				spoil(t, dir)
			}
			var want bytes.Buffer
			for _, h := range all {
				fmt.Fprintf(&want, "%s golden 0b0e7a3c-5d9e-4b6e-9f5a-3c1d2e4f5a6b %d %s\n", h.ID, h.Size, h.Type)
			}
			if got := python(t, append(open, dir, "list")...); !bytes.Equal(got, want.Bytes()) {
				t.Errorf("%s lists\n%swant\n%s", g.Name, got, want.Bytes())
			}
			for _, h := range all {
				file := filepath.Join(t.TempDir(), "disk")
				python(t, append(open, dir, "restore", h.ID, file)...)
				if got := sumOf(t, file); got != h.SHA256 {
					t.Errorf("%s: backup %s is %s, want %s", g.Name, h.ID, got, h.SHA256)
				}
			}
		}
	}
}

// spoil damages what a reader has to find its way around: the first header of each pack, and one copy of the configuration and the keys.
func spoil(t *testing.T, dir string) {
	t.Helper()
	var names []string
	for _, pattern := range []string{"packs/*/*", "nodes/*/*", "config.0", "keys/*.0"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, found...)
	}
	if len(names) < 3 {
		t.Fatalf("only %d objects to damage in %s", len(names), dir)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b[20] ^= 1
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
