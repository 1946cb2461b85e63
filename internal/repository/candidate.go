package repository

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
)

// Candidate is a part of what tells of a session that has not ended: while it
// exists, what it names is needed. Names of the parts are candidates/RECORD.SEQ.
type Candidate struct {
	Record  string         // the id that the record will have
	Final   *Record        // in the last part: what is about to be committed
	Packs   []chunk.PackID // of chunks and nodes, put since the last part
	Set     uuid.UUID
	Volumes []uuid.UUID
}

type wireCandidate struct {
	Record  []byte   `cbor:"1,keyasint"`
	Final   []byte   `cbor:"2,keyasint,omitempty"` // an encoded record
	Packs   [][]byte `cbor:"3,keyasint,omitempty"`
	Set     []byte   `cbor:"4,keyasint,omitempty"`
	Volumes [][]byte `cbor:"5,keyasint,omitempty"`
}

const (
	candidatePrefix = "candidates/"
	recordPrefix    = "backups/"
	deletedPrefix   = "deleted/"
	fencePrefix     = "fenced/"
)

func candidateName(record string, seq int) string {
	return fmt.Sprintf("%s%s.%d", candidatePrefix, record, seq)
}

func (c *Candidate) encode() ([]byte, error) {
	w := wireCandidate{Record: idBytes(c.Record), Set: uuidBytes(c.Set)}
	if c.Final != nil {
		b, err := c.Final.encode()
		if err != nil {
			return nil, err
		}
		w.Final = b
	}
	for _, p := range c.Packs {
		w.Packs = append(w.Packs, p[:])
	}
	for _, v := range c.Volumes {
		w.Volumes = append(w.Volumes, v[:])
	}
	return cbor.Marshal(w)
}

func decodeCandidate(b []byte, record string) (Candidate, error) {
	var w wireCandidate
	if err := decode(b, &w); err != nil {
		return Candidate{}, err
	}
	c := Candidate{Record: record}
	if string(w.Record) != string(idBytes(record)) || len(w.Set) != 0 && len(w.Set) != 16 {
		return Candidate{}, fmt.Errorf("candidate of %x under the name of %s: %w", w.Record, record, ErrDamaged)
	}
	copy(c.Set[:], w.Set)
	if len(w.Final) > 0 {
		r, err := decodeRecord(w.Final, record)
		if err != nil {
			return Candidate{}, err
		}
		c.Final = &r
	}
	for _, p := range w.Packs {
		if len(p) != 16 {
			return Candidate{}, fmt.Errorf("pack id of %d bytes: %w", len(p), ErrDamaged)
		}
		c.Packs = append(c.Packs, chunk.PackID(p))
	}
	for _, v := range w.Volumes {
		if len(v) != 16 {
			return Candidate{}, fmt.Errorf("volume id of %d bytes: %w", len(v), ErrDamaged)
		}
		c.Volumes = append(c.Volumes, uuid.UUID(v))
	}
	return c, nil
}

// CandidatePart is a candidate's object: what Candidates visits.
type CandidatePart struct {
	Stored
	Candidate
}

// Candidates visits the parts of all candidates in the order of their names.
func (r *Repo) Candidates(ctx context.Context, visit func(CandidatePart) error) error {
	found, err := r.Stored(ctx, candidatePrefix)
	if err != nil {
		return err
	}
	for _, i := range found {
		record, _, _ := strings.Cut(strings.TrimPrefix(i.Name, candidatePrefix), ".")
		_, plain, err := r.keys.LoadObject(ctx, r.store, i.Name, envelope.Candidate)
		if errors.Is(err, objects.ErrNotFound) {
			continue // it has been committed, or given up
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", i.Name, err)
		}
		c, err := decodeCandidate(plain, record)
		if err != nil {
			return fmt.Errorf("read %s: %w", i.Name, err)
		}
		if err := visit(CandidatePart{i, c}); err != nil {
			return err
		}
	}
	return nil
}

// tell puts the next part of the session's candidate, with the index run of what it names.
func (s *Session) tell(ctx context.Context, final *Record) error {
	if err := s.writeRun(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	c := Candidate{Record: s.o.ID, Final: final, Packs: s.unmarked, Set: s.o.Set, Volumes: s.o.Volumes}
	name := candidateName(s.o.ID, s.parts)
	s.unmarked = nil
	s.parts++
	s.mu.Unlock()
	plain, err := c.encode()
	if err != nil {
		return err
	}
	if err := s.putSmall(ctx, envelope.Candidate, name, plain); err != nil {
		s.mu.Lock()
		s.unmarked = append(s.unmarked, c.Packs...)
		s.mu.Unlock()
		return err
	}
	return nil
}

// putSmall puts an object that is sealed in one piece, under no retention, and counts it.
func (s *Session) putSmall(ctx context.Context, kind envelope.Kind, name string, plain []byte) error {
	n, err := s.repo.putSmall(ctx, kind, name, plain)
	s.mu.Lock()
	s.stats.StoredBytes += n
	s.stats.Objects++
	s.mu.Unlock()
	return err
}
