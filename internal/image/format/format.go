// Package format tells image formats apart by the first bytes of a file, and
// knows what to do about those that Varve does not read.
package format

import "encoding/binary"

// Format is the name of an image format, as qemu-img -f calls it where it knows the format.
type Format string

// The formats that Varve reads and writes.
const (
	Raw   Format = "raw"
	Qcow2 Format = "qcow2"
)

// HeadBytes is how much of a file Detect wants to see.
const HeadBytes = 512

// Readable tells whether Varve reads the format.
func (f Format) Readable() bool { return f == Raw || f == Qcow2 }

// Hint says how to turn a file of a format that Varve does not read into one
// that it does; empty for readable formats.
func (f Format) Hint() string {
	if f.Readable() {
		return ""
	}
	for _, s := range signatures {
		if s.format == f && s.packed {
			return "unpack it first"
		}
	}
	return "convert it first: qemu-img convert -f " + string(f) + " -O qcow2 FILE FILE.qcow2"
}

// A signature is what a file of a format has at a fixed offset.
type signature struct {
	format Format
	offset int // bytes
	magic  string
	packed bool // not a disk image itself: holds one
}

var signatures = []signature{
	{"qed", 0, "QED\x00", false},
	{"vmdk", 0, "KDMV", false},
	{"vmdk", 0, "COWD", false},
	{"vmdk", 0, "# Disk DescriptorFile", false},
	{"vdi", 64, "\x7f\x10\xda\xbe", false},
	{"vhdx", 0, "vhdxfile", false},
	{"vpc", 0, "conectix", false},
	{"parallels", 0, "WithoutFreeSpace", false},
	{"parallels", 0, "WithouFreSpacExt", false},
	{"gzip", 0, "\x1f\x8b\x08", true},
	{"xz", 0, "\xfd7zXZ\x00", true},
	{"zstd", 0, "\x28\xb5\x2f\xfd", true},
	{"tar", 257, "ustar", true},
}

// Detect names the format of a file that begins with head: the first HeadBytes,
// or all of a shorter file. What it does not recognise is raw.
//
// A raw disk's first bytes are its user's, who can make them look like any
// format. So a detected format may decide how this file is read, never that
// another file is read which the same bytes name, unless whoever named this
// file answers for its content.
func Detect(head []byte) Format {
	if len(head) >= 8 && string(head[:4]) == "QFI\xfb" {
		if binary.BigEndian.Uint32(head[4:]) == 1 {
			return "qcow"
		}
		return Qcow2
	}
	for _, s := range signatures {
		if end := s.offset + len(s.magic); len(head) >= end && string(head[s.offset:end]) == s.magic {
			return s.format
		}
	}
	return Raw
}
