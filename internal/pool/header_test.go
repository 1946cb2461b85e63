package pool_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// Where things lie in a batch header, by docs/format.md.
const (
	headerVersion  = 8
	headerChecksum = 12
	headerEntries  = 80 // the first entry's kind
)

// saltOf reads the salt of batch headers in the superblock.
func saltOf(t *testing.T, fs *crashfs.FS) []byte {
	t.Helper()
	return readAll(t, fs, superblockPath, nil)[104:112]
}

// seal makes a header's checksum right.
func seal(header, salt []byte) {
	le := binary.LittleEndian
	le.PutUint32(header[headerChecksum:], 0)
	table := crc32.MakeTable(crc32.Castagnoli)
	le.PutUint32(header[headerChecksum:], crc32.Update(crc32.Checksum(salt, table), table, header))
}

// overwrite puts bytes on the disk.
func overwrite(t *testing.T, fs *crashfs.FS, name string, off int64, p []byte) {
	t.Helper()
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.WriteAt([][]byte{bytes.Clone(p)}, off), f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// A client knows all that a header says but the salt, and writes blocks that claim to be headers of a
// far future at the places where they come to lie. Their own batch is torn by a power cut, so that recovery
// looks through them: they are data. With the salt the pool would be refused.
func TestDataThatLooksLikeHeadersIsData(t *testing.T) {
	d := newDriver(t)
	d.createVolume("v", 64<<10)
	d.submit("v", writeOp(0, 4096))
	d.flush("v")
	id := d.p.Info().ID
	holds := d.present().String()
	d.submit("v", writeOp(0, 40<<10))
	d.p.Abandon()
	for _, knowsSalt := range []bool{false, true} {
		image := d.fs.CrashImage(crashfs.KeepAll)
		torn := last(t, image, 10)
		payload := torn.offset + torn.headerBlocks*block.Size
		forged := bytes.Clone(readAll(t, image, torn.file, nil)[torn.offset:][:block.Size])
		if !bytes.Contains(forged, id[:]) {
			t.Fatal("this is no header of the pool")
		}
		le := binary.LittleEndian
		le.PutUint64(forged[32:], 1<<40) // its number
		le.PutUint64(forged[40:], 1<<39) // the newest durable batch
		le.PutUint32(forged[64:], 1)     // header blocks
		clear(forged[68:])               // no payload, no entries
		salt := saltOf(t, image)
		if !knowsSalt {
			salt = nil
		}
		for i := range int64(10) {
			at := payload + i*block.Size
			le.PutUint32(forged[56:], uint32(at/block.Size))
			seal(forged, salt)
			overwrite(t, image, torn.file, at, forged)
		}
		overwrite(t, image, torn.file, torn.offset, zeros)
		if knowsSalt {
			d.demandRefused(image, pool.ErrDamagedLog)
			continue
		}
		p, err := d.openImage(image)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.dump(p); got != holds {
			t.Errorf("the pool holds\n%s\nand should\n%s", got, holds)
		}
		p.Abandon()
	}
}

// A sound header that says what this program does not know is no torn one: the pool is
// refused and left as it is, and nothing is guessed.
func TestUnknownThingsInTheLogAreRefused(t *testing.T) {
	d := newDriver(t)
	d.createVolume("v", 64<<10)
	d.snapshot("s", "v")
	d.protect("v", "s", true)
	d.p.Abandon()
	for name, c := range map[string]struct {
		change func(header []byte)
		want   error
	}{
		"version": {func(h []byte) { h[headerVersion]++ }, pool.ErrNewerFormat},
		"entry":   {func(h []byte) { h[headerEntries] = 99 }, pool.ErrDamagedLog},
		"key of an operation": {func(h []byte) { // {7: {1: ID, 2: true}} becomes {7: {1: ID, 9: true}}
			key := bytes.Index(h, []byte{0x02, 0xf5})
			if key < headerEntries {
				t.Fatal("this is not the protection of a snapshot")
			}
			h[key] = 9
		}, pool.ErrDamagedLog},
	} {
		t.Run(name, func(t *testing.T) {
			image := d.fs.CrashImage(crashfs.KeepAll)
			b := last(t, image, 0)
			h := bytes.Clone(readAll(t, image, b.file, nil)[b.offset:][:b.headerBlocks*block.Size])
			c.change(h)
			seal(h, saltOf(t, image))
			overwrite(t, image, b.file, b.offset, h)
			e := *d
			e.tb = t
			e.demandRefused(image, c.want)
		})
	}
}
