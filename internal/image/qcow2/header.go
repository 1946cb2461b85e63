package qcow2

import (
	"encoding/binary"
	"fmt"

	"varve/internal/block"
	"varve/internal/image/raw"
)

// Limits on what a header may ask for.
const (
	minClusterBits = 9  // spec "Header"
	maxClusterBits = 21 // QEMU's limit, as is the next
	maxL1Bytes     = 32 << 20

	minExtendedClusterBits = 14 // with extended L2 entries
	maxBackingNameBytes    = 1023
)

// Offsets and sizes of the header, spec "Header".
const (
	magic            = "QFI\xfb"
	headerBytesV2    = 72
	headerBytesV3    = 104 // at least
	defaultRefOrder  = 4   // 16 bits
	maxRefcountOrder = 6
)

// Bits of incompatible_features.
const (
	featureDirty uint64 = 1 << iota
	featureCorrupt
	featureExternalData
	featureCompressionType
	featureExtendedL2
)

// Types of header extensions, spec "Header extensions".
const (
	extensionEnd           = 0
	extensionBackingFormat = 0xe2792aca
	extensionFeatureNames  = 0x6803f857
	extensionBitmaps       = 0x23852875
)

// Values of compression_type.
const (
	compressionZlib = 0
	compressionZstd = 1
)

// header is what the reader needs of the first cluster, checked.
type header struct {
	version       uint32
	clusterBits   uint
	sizeBytes     int64
	l1Entries     int64 // in the file; may be more than the size needs
	l1Offset      int64
	extendedL2    bool
	compression   byte
	snapshots     uint32
	bitmaps       uint32
	backingName   string // empty: none
	backingFormat string // empty: not told
}

func (h *header) clusterBytes() int64 { return 1 << h.clusterBits }

// l2EntryBits is the binary logarithm of the bytes in an L2 entry.
func (h *header) l2EntryBits() uint {
	if h.extendedL2 {
		return 4
	}
	return 3
}

// l2Bits is the binary logarithm of the entries in an L2 table.
func (h *header) l2Bits() uint { return h.clusterBits - h.l2EntryBits() }

// l1Bits is the binary logarithm of the guest bytes that an L1 entry covers.
func (h *header) l1Bits() uint { return h.clusterBits + h.l2Bits() }

// neededL1Entries is how many L1 entries the virtual size takes.
func (h *header) neededL1Entries() int64 {
	return (h.sizeBytes + 1<<h.l1Bits() - 1) >> h.l1Bits()
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrUnsupported}, args...)...)
}

// parseHeader reads and checks the header. head is the beginning of the file: at
// least the first cluster, or all of a shorter file.
func parseHeader(head []byte) (*header, error) {
	if len(head) < headerBytesV2 {
		return nil, corrupt("the file is shorter than a header")
	}
	be := binary.BigEndian
	if string(head[:4]) != magic {
		return nil, corrupt("no qcow2 signature")
	}
	h := &header{version: be.Uint32(head[4:])}
	if h.version < 2 || h.version > 3 {
		return nil, unsupported("version %d; versions 2 and 3 are read", h.version)
	}
	bits := be.Uint32(head[20:])
	if bits < minClusterBits || bits > maxClusterBits {
		return nil, corrupt("clusters of 2^%d bytes; 2^%d to 2^%d are possible", bits, minClusterBits, maxClusterBits)
	}
	h.clusterBits = uint(bits)
	head = head[:min(int64(len(head)), h.clusterBytes())]

	switch method := be.Uint32(head[32:]); method {
	case 0:
	case 1, 2:
		return nil, unsupported("it is encrypted; decrypt it first: qemu-img convert with --object secret and --image-opts")
	default:
		return nil, unsupported("unknown encryption method %d", method)
	}
	headerBytes, features := int64(headerBytesV2), uint64(0)
	if h.version == 3 {
		var err error
		if headerBytes, features, err = h.parseV3(head); err != nil {
			return nil, err
		}
	}
	extensionsEnd := h.clusterBytes()
	nameOffset, nameBytes := be.Uint64(head[8:]), int64(be.Uint32(head[16:]))
	if nameOffset != 0 {
		if nameOffset < uint64(headerBytes) || nameOffset > uint64(len(head)) || nameBytes > int64(len(head))-int64(nameOffset) {
			return nil, corrupt("the name of the backing file lies at %d+%d, outside of the first cluster", nameOffset, nameBytes)
		}
		if nameBytes > maxBackingNameBytes {
			return nil, corrupt("a backing file name of %d bytes", nameBytes)
		}
		h.backingName = string(head[nameOffset:][:nameBytes])
		extensionsEnd = int64(nameOffset)
	}
	names, err := h.parseExtensions(head[:min(extensionsEnd, int64(len(head)))], headerBytes)
	if err != nil {
		return nil, err
	}
	if err := checkFeatures(features, names); err != nil {
		return nil, err
	}
	h.snapshots = be.Uint32(head[60:])
	return h, h.parseSizes(head)
}

// parseV3 reads the fields that version 3 added.
func (h *header) parseV3(head []byte) (headerBytes int64, features uint64, err error) {
	be := binary.BigEndian
	if len(head) < headerBytesV3 {
		return 0, 0, corrupt("the file is shorter than a header")
	}
	features = be.Uint64(head[72:])
	if order := be.Uint32(head[96:]); order > maxRefcountOrder {
		return 0, 0, corrupt("reference counts of 2^%d bits", order)
	}
	headerBytes = int64(be.Uint32(head[100:]))
	if headerBytes < headerBytesV3 || headerBytes%8 != 0 || headerBytes > int64(len(head)) {
		return 0, 0, corrupt("a header of %d bytes", headerBytes)
	}
	if headerBytes > headerBytesV3 {
		h.compression = head[104]
	}
	if features&featureCompressionType != 0 != (h.compression != compressionZlib) {
		return 0, 0, corrupt("compression type %d contradicts the feature bits", h.compression)
	}
	if h.compression > compressionZstd {
		return 0, 0, unsupported("unknown compression type %d", h.compression)
	}
	h.extendedL2 = features&featureExtendedL2 != 0
	if h.extendedL2 && h.clusterBits < minExtendedClusterBits {
		return 0, 0, corrupt("extended L2 entries with clusters of %d bytes", h.clusterBytes())
	}
	return headerBytes, features, nil
}

// parseExtensions walks the header extensions in area from off on, and returns
// the feature name table.
func (h *header) parseExtensions(area []byte, off int64) (names []byte, err error) {
	be := binary.BigEndian
	for off+8 <= int64(len(area)) {
		kind, length := be.Uint32(area[off:]), int64(be.Uint32(area[off+4:]))
		off += 8
		if kind == extensionEnd {
			break
		}
		if length > int64(len(area))-off {
			return nil, corrupt("header extension 0x%08x of %d bytes reaches beyond its area", kind, length)
		}
		body := area[off : off+length]
		switch kind {
		case extensionBackingFormat:
			h.backingFormat = string(body)
		case extensionFeatureNames:
			names = body
		case extensionBitmaps:
			if length >= 4 {
				h.bitmaps = be.Uint32(body)
			}
		}
		off += (length + 7) &^ 7
	}
	return names, nil
}

// checkFeatures refuses images whose incompatible features say that they must not be read as they are.
func checkFeatures(features uint64, names []byte) error {
	switch known := featureDirty | featureCorrupt | featureExternalData | featureCompressionType | featureExtendedL2; {
	case features&^known != 0:
		return unsupported("unknown incompatible features: %s", featureList(features&^known, names))
	case features&featureCorrupt != 0:
		return fmt.Errorf("%w: it is marked as corrupt; repair it on a copy: qemu-img check -r all FILE", ErrNeedsCheck)
	case features&featureDirty != 0:
		return fmt.Errorf("%w: it was not closed properly; repair it: qemu-img check -r all FILE", ErrNeedsCheck)
	case features&featureExternalData != 0:
		return unsupported("its data is in an external file; make it one file: qemu-img convert -O qcow2 FILE NEW")
	}
	return nil
}

// featureList names the bits in set by the image's feature name table.
func featureList(set uint64, names []byte) string {
	const entryBytes, incompatible = 48, 0
	list := ""
	for bit := range 64 {
		if set&(1<<bit) == 0 {
			continue
		}
		if list != "" {
			list += ", "
		}
		list += fmt.Sprintf("bit %d", bit)
		for n := names; len(n) >= entryBytes; n = n[entryBytes:] {
			if n[0] == incompatible && int(n[1]) == bit {
				list += fmt.Sprintf(" (%q)", cString(n[2:entryBytes]))
				break
			}
		}
	}
	return list
}

func cString(p []byte) string {
	for i, c := range p {
		if c == 0 {
			return string(p[:i])
		}
	}
	return string(p)
}

// parseSizes reads the virtual size and the place of the L1 table.
func (h *header) parseSizes(head []byte) error {
	be := binary.BigEndian
	size := be.Uint64(head[24:])
	if size > uint64(block.MaxDeviceBytes) {
		return fmt.Errorf("%d bytes: %w", size, raw.ErrTooLarge)
	}
	h.sizeBytes = int64(size)
	if h.sizeBytes%block.SectorSize != 0 {
		return unsupported("its size of %d bytes is no multiple of %d; change it: qemu-img resize FILE SIZE", size, block.SectorSize)
	}
	h.l1Entries = int64(be.Uint32(head[36:]))
	if h.l1Entries*8 > maxL1Bytes {
		return corrupt("an L1 table of %d entries; %d are possible", h.l1Entries, maxL1Bytes/8)
	}
	if needed := h.neededL1Entries(); h.l1Entries < needed {
		return corrupt("an L1 table of %d entries; the size takes %d", h.l1Entries, needed)
	}
	offset := be.Uint64(head[40:])
	if offset > 1<<62 || offset&uint64(h.clusterBytes()-1) != 0 {
		return corrupt("the L1 table at %d is not at a cluster", offset)
	}
	h.l1Offset = int64(offset)
	return nil
}
