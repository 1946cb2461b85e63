package repository

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"regexp"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/uuid"

	"varve/internal/repository/chunk"
	"varve/internal/repository/maptree"
)

// Type is how much of a volume a backup had to read.
type Type uint8

// The three types.
const (
	Full         Type = 1
	Incremental  Type = 2
	Differential Type = 3
)

func (t Type) String() string {
	switch t {
	case Full:
		return "full"
	case Incremental:
		return "incremental"
	case Differential:
		return "differential"
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// Record is what a session leaves: one backup, or those of a group of volumes
// at one instant. Its object is the last that is put; with it they exist.
type Record struct {
	ID         string // 16 hexadecimal digits, the object's name
	Backups    []Backup
	StartedAt  time.Time
	FinishedAt time.Time // zero in a candidate
	Host       string    // where the session ran
	Program    string    // what wrote it, with its version
	Stats      Stats
}

// Backup is one volume at one point in time.
type Backup struct {
	ID        string // 16 hexadecimal digits, of a single one the record's
	Volume    string // its name then
	VolumeID  uuid.UUID
	SizeBytes int64
	Type      Type
	Base      string // the backup that its map was made from; empty if from nothing
	Full      string // the full that it belongs to, itself for a full
	Reason    string // why this type
	Root      maptree.Root
	Set       uuid.UUID // in scope set, else zero

	PointID     uuid.UUID // of the snapshot that was copied; zero for foreign sources
	PointAt     time.Time // the instant
	Consistency string    // application, filesystem, crash or none
	FreezeTime  time.Duration
	Steps       []Step // of creating the snapshot
	Source      string // what was read, as the user named it
	Policy      uuid.UUID
	Labels      map[string]string

	MappedBytes  int64 // of the volume, without holes; whole blocks
	ReadBytes    int64 // from the source
	ChangedBytes int64 // blocks that are not what the base has
	// Sampled blocks should not have changed; Mismatched of them had: then everything was compared.
	Sampled, Mismatched int64
}

// Step is a stage and the time it took.
type Step struct {
	Name string        `cbor:"1,keyasint"`
	Took time.Duration `cbor:"2,keyasint"`
}

// Stats tell what a session did to the store. Bytes.
type Stats struct {
	NewBytes        int64  `cbor:"1,keyasint"` // plain content of chunks that were stored
	DuplicateBytes  int64  `cbor:"2,keyasint"` // plain content of chunks that were there already
	CompressedBytes int64  `cbor:"3,keyasint"` // what NewBytes became
	NodeBytes       int64  `cbor:"4,keyasint"` // map nodes, compressed
	ParityBytes     int64  `cbor:"5,keyasint"`
	StoredBytes     int64  `cbor:"6,keyasint"` // of all objects put, with all of these
	Objects         int64  `cbor:"7,keyasint"` // put
	Requests        int64  `cbor:"8,keyasint"` // of any kind
	Stages          []Step `cbor:"9,keyasint"`
}

// wireRecord and wireBackup are the stored forms: see docs/format-repository.md.
type wireRecord struct {
	ID         []byte       `cbor:"1,keyasint"`
	Backups    []wireBackup `cbor:"2,keyasint"`
	StartedAt  int64        `cbor:"3,keyasint"`
	FinishedAt int64        `cbor:"4,keyasint,omitempty"`
	Host       string       `cbor:"5,keyasint"`
	Program    string       `cbor:"6,keyasint"`
	Stats      Stats        `cbor:"7,keyasint"`
}

type wireBackup struct {
	ID           []byte            `cbor:"1,keyasint"`
	Volume       string            `cbor:"2,keyasint"`
	VolumeID     []byte            `cbor:"3,keyasint"`
	SizeBytes    int64             `cbor:"4,keyasint"`
	Type         uint8             `cbor:"5,keyasint"`
	Base         []byte            `cbor:"6,keyasint,omitempty"`
	Full         []byte            `cbor:"7,keyasint"`
	Reason       string            `cbor:"8,keyasint"`
	Root         []byte            `cbor:"9,keyasint,omitempty"` // id (32), pack (16); absent: all hole
	RootFrame    uint32            `cbor:"10,keyasint,omitempty"`
	RootLevel    uint8             `cbor:"11,keyasint,omitempty"`
	Set          []byte            `cbor:"12,keyasint,omitempty"`
	PointID      []byte            `cbor:"13,keyasint,omitempty"`
	PointAt      int64             `cbor:"14,keyasint"`
	Consistency  string            `cbor:"15,keyasint"`
	FreezeTime   int64             `cbor:"16,keyasint,omitempty"`
	Steps        []Step            `cbor:"17,keyasint,omitempty"`
	Source       string            `cbor:"18,keyasint"`
	Policy       []byte            `cbor:"19,keyasint,omitempty"`
	Labels       map[string]string `cbor:"20,keyasint,omitempty"`
	MappedBytes  int64             `cbor:"21,keyasint"`
	ReadBytes    int64             `cbor:"22,keyasint"`
	ChangedBytes int64             `cbor:"23,keyasint"`
	Sampled      int64             `cbor:"24,keyasint,omitempty"`
	Mismatched   int64             `cbor:"25,keyasint,omitempty"`
}

const (
	// maxRecordBytes bounds what is decoded.
	maxRecordBytes = 16 << 20
	// MaxMembers is the largest group of volumes in one record.
	MaxMembers = 4096
)

// An element takes a byte, and in memory up to half a KiB: no list that is written has more of them than this.
var decoding, _ = cbor.DecOptions{MaxArrayElements: 1 << 16, MaxMapPairs: 1 << 16, MaxNestedLevels: 8}.DecMode()

// decode reads what encode wrote; fields it does not know are left out.
func decode(b []byte, v any) error {
	if len(b) > maxRecordBytes {
		return fmt.Errorf("%d bytes are too many: %w", len(b), ErrDamaged)
	}
	if err := decoding.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// NewID chooses an id for a record or a backup.
func NewID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

var idPattern = regexp.MustCompile(`^[0-9a-f]{16}$`)

// ValidID tells whether s can be the id of a backup.
func ValidID(s string) bool { return idPattern.MatchString(s) }

func idBytes(id string) []byte {
	b, err := hex.DecodeString(id)
	if err != nil || len(b) == 0 {
		return nil
	}
	return b
}

func uuidBytes(id uuid.UUID) []byte {
	if id == uuid.Nil {
		return nil
	}
	return id[:]
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func (r *Record) encode() ([]byte, error) {
	w := wireRecord{
		ID: idBytes(r.ID), StartedAt: nanos(r.StartedAt), FinishedAt: nanos(r.FinishedAt),
		Host: r.Host, Program: r.Program, Stats: r.Stats,
	}
	for _, b := range r.Backups {
		wb := wireBackup{
			ID: idBytes(b.ID), Volume: b.Volume, VolumeID: b.VolumeID[:], SizeBytes: b.SizeBytes, Type: uint8(b.Type),
			Base: idBytes(b.Base), Full: idBytes(b.Full), Reason: b.Reason, Set: uuidBytes(b.Set),
			PointID: uuidBytes(b.PointID), PointAt: nanos(b.PointAt), Consistency: b.Consistency, FreezeTime: int64(b.FreezeTime),
			Steps: b.Steps, Source: b.Source, Policy: uuidBytes(b.Policy), Labels: b.Labels,
			MappedBytes: b.MappedBytes, ReadBytes: b.ReadBytes, ChangedBytes: b.ChangedBytes, Sampled: b.Sampled, Mismatched: b.Mismatched,
		}
		if !b.Root.Empty {
			wb.Root = append(append(wb.Root, b.Root.ID[:]...), b.Root.Place.Pack[:]...)
			wb.RootFrame, wb.RootLevel = b.Root.Place.Frame, uint8(b.Root.Level)
		}
		w.Backups = append(w.Backups, wb)
	}
	return cbor.Marshal(w)
}

// check tells whether the record, once it is put, can be read: nobody would prune beside one that cannot.
func (r *Record) check() error {
	plain, err := r.encode()
	if err == nil {
		_, err = decodeRecord(plain, r.ID)
	}
	return err
}

func decodeRecord(b []byte, id string) (Record, error) {
	var w wireRecord
	if err := decode(b, &w); err != nil {
		return Record{}, err
	}
	r := Record{
		ID: hex.EncodeToString(w.ID), StartedAt: at(w.StartedAt), FinishedAt: at(w.FinishedAt),
		Host: w.Host, Program: w.Program, Stats: w.Stats,
	}
	if r.ID != id || len(w.Backups) == 0 || len(w.Backups) > MaxMembers {
		return Record{}, fmt.Errorf("record %q of %d backups under the name %s: %w", r.ID, len(w.Backups), id, ErrDamaged)
	}
	for i := range w.Backups {
		b, err := w.Backups[i].backup()
		if err != nil {
			return Record{}, err
		}
		r.Backups = append(r.Backups, b)
	}
	return r, nil
}

func (w *wireBackup) backup() (Backup, error) {
	b := Backup{
		ID: hex.EncodeToString(w.ID), Volume: w.Volume, SizeBytes: w.SizeBytes, Type: Type(w.Type),
		Base: hex.EncodeToString(w.Base), Full: hex.EncodeToString(w.Full), Reason: w.Reason,
		PointAt: at(w.PointAt), Consistency: w.Consistency, FreezeTime: time.Duration(w.FreezeTime), Steps: w.Steps,
		Source: w.Source, Labels: w.Labels,
		MappedBytes: w.MappedBytes, ReadBytes: w.ReadBytes, ChangedBytes: w.ChangedBytes, Sampled: w.Sampled, Mismatched: w.Mismatched,
	}
	ok := ValidID(b.ID) && (b.Base == "" || ValidID(b.Base)) && ValidID(b.Full) && w.SizeBytes >= 0 && w.Type >= 1 && w.Type <= 3
	for _, u := range []struct {
		to   *uuid.UUID
		from []byte
	}{{&b.VolumeID, w.VolumeID}, {&b.Set, w.Set}, {&b.PointID, w.PointID}, {&b.Policy, w.Policy}} {
		ok = ok && (len(u.from) == 0 || len(u.from) == 16)
		copy(u.to[:], u.from)
	}
	switch len(w.Root) {
	case 0:
		b.Root.Empty = true
	case len(chunk.ID{}) + len(chunk.PackID{}):
		copy(b.Root.ID[:], w.Root)
		copy(b.Root.Place.Pack[:], w.Root[len(chunk.ID{}):])
		b.Root.Place.Frame, b.Root.Level = w.RootFrame, int(w.RootLevel)
	default:
		ok = false
	}
	if !ok {
		return Backup{}, fmt.Errorf("entry of backup %q: %w", b.ID, ErrDamaged)
	}
	return b, nil
}

func at(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}
