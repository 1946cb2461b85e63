package cli_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"varve/internal/contract"
)

// bytesOf reads a size of a script: 4096, 3M.
func bytesOf(ts *testscript.TestScript, s string) int64 {
	n, err := strconv.ParseInt(strings.TrimSuffix(s, "M"), 10, 64)
	ts.Check(err)
	if strings.HasSuffix(s, "M") {
		n <<= 20
	}
	return n
}

func noise(seed string, n int64) []byte {
	p := make([]byte, n)
	var key [32]byte
	copy(key[:], seed)
	rand.NewChaCha8(key).Read(p)
	return p
}

// disk FILE SIZE SEED makes a raw disk of content that nothing else has.
func makeDisk(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), noise(args[2], bytesOf(ts, args[1])), 0o600))
}

// dirt FILE OFFSET LENGTH SEED changes a part of it.
func dirt(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_WRONLY, 0)
	ts.Check(err)
	_, err = f.WriteAt(noise(args[3], bytesOf(ts, args[2])), bytesOf(ts, args[1]))
	ts.Check(err)
	ts.Check(f.Close())
}

// id NAME puts the id of the backup on the last stdout, as a table or JSON, into a variable.
func keepID(ts *testscript.TestScript, _ bool, args []string) {
	out := strings.TrimSpace(ts.ReadFile("stdout"))
	if strings.HasPrefix(out, "[") {
		var made []contract.Backup
		ts.Check(json.Unmarshal([]byte(out), &made))
		out = made[0].ID
	}
	ts.Setenv(args[0], out)
}

// cmp-bytes FILE FILE wants two files to be the same; with "! " not to be.
func cmpBytes(ts *testscript.TestScript, neg bool, args []string) {
	if same := ts.ReadFile(args[0]) == ts.ReadFile(args[1]); same == neg {
		ts.Fatalf("%s and %s: same is %t", args[0], args[1], same)
	}
}

// part FILE BACKUP LENGTH leaves what a restore that was cut short would: the beginning of disk.raw as the script first made it.
func makePart(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(ts.Exec("varve", "backup", "restore", args[1], "--url", "repo", "--to", args[0]))
	b := []byte(ts.ReadFile(args[0]))
	n := bytesOf(ts, args[2])
	clear(b[n:])
	ts.Check(os.Remove(ts.MkAbs(args[0])))
	ts.Check(os.WriteFile(ts.MkAbs("."+args[0]+"."+args[1]+".varve-part"), b, 0o600))
}

// no-parts wants that nothing unfinished lies about.
func noParts(ts *testscript.TestScript, _ bool, _ []string) {
	found, err := filepath.Glob(ts.MkAbs(".*.varve-part"))
	ts.Check(err)
	if len(found) > 0 {
		ts.Fatalf("left over: %v", found)
	}
}

// writer FILE has it open for writing until the script ends.
func writer(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	ts.Defer(func() { f.Close() })
}

// remove-key REPO PASSWORD-FILE LABEL removes the key of that label, and puts the id of one that stays into $LAST.
func removeKey(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(ts.Exec("varve", "repo", "key", "list", "--url", args[0], "--password-file", args[1], "-o", "json"))
	var keys []contract.RepositoryKey
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &keys))
	for _, k := range keys {
		if k.Label == args[2] {
			ts.Check(ts.Exec("varve", "repo", "key", "remove", "--url", args[0], "--password-file", args[1], k.ID[:8]))
		} else {
			ts.Setenv("LAST", k.ID)
		}
	}
}

// newer REPO makes of its configuration one of the next version of the envelope.
func newer(ts *testscript.TestScript, _ bool, args []string) {
	names, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "config.*"))
	ts.Check(err)
	for _, name := range names {
		b, err := os.ReadFile(name)
		ts.Check(err)
		for _, h := range [][]byte{b[:128], b[len(b)-128:]} {
			binary.LittleEndian.PutUint16(h[8:], 2)
			binary.LittleEndian.PutUint32(h[124:], crc32.Checksum(h[:124], crc32.MakeTable(crc32.Castagnoli)))
		}
		ts.Check(os.WriteFile(name, b, 0o600))
	}
}

// spoil-packs REPO damages the packs of chunks so much that parity does not suffice for all of it: half a megabyte of zeros in each.
func spoilPacks(ts *testscript.TestScript, _ bool, args []string) {
	names, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "packs/*/*"))
	ts.Check(err)
	for _, name := range names {
		b, err := os.ReadFile(name)
		ts.Check(err)
		if len(b) > 1<<20 {
			copy(b[len(b)/2:], bytes.Repeat([]byte{0}, 1<<19))
		}
		ts.Check(os.WriteFile(name, b, 0o600))
	}
}

// flip REPO changes a byte in the middle of each pack of chunks.
func flip(ts *testscript.TestScript, _ bool, args []string) {
	names, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "packs/*/*"))
	ts.Check(err)
	for _, name := range names {
		b, err := os.ReadFile(name)
		ts.Check(err)
		b[len(b)/2] ^= 1
		ts.Check(os.WriteFile(name, b, 0o600))
	}
}

// smaller-than DIR SIZE wants all files below a directory to have less than so many bytes together.
func smallerThan(ts *testscript.TestScript, _ bool, args []string) {
	var sum int64
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	}))
	if limit := bytesOf(ts, args[1]); sum >= limit {
		ts.Fatalf("%s has %d bytes, not less than %d", args[0], sum, limit)
	}
}
