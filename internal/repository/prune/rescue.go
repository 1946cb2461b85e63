package prune

import (
	"context"
	"errors"

	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/repository"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/index"
	"varve/internal/repository/pack"
)

// rescuer copies what is needed out of condemned packs. What cannot be read anywhere keeps its pack.
type rescuer struct {
	p      *pruner
	t      *table
	set    uuid.UUID
	open   map[envelope.Kind]*pack.Builder
	runs   *index.Writer
	plain  []byte
	failed bool // something could not be read
}

// rescue copies what the survey found in condemned packs alone. When it returns without error, all of it is in other packs, and in
// the index; all is false if something could not be read, whose packs are kept.
func (p *pruner) rescue(ctx context.Context, s *survey) (all bool, err error) {
	r := &rescuer{p: p, t: s.inv.table, open: map[envelope.Kind]*pack.Builder{}}
	var group []placed
	set := none
	flush := func() error {
		if len(group) == 0 {
			return nil
		}
		if group[0].set != set {
			if err := r.begin(ctx, r.t.sets[group[0].set]); err != nil {
				return err
			}
			set = group[0].set
		}
		err := r.copy(ctx, group)
		group = group[:0]
		return err
	}
	for pl, err := range s.rescue.Sorted() {
		if err != nil {
			return false, err
		}
		if len(group) > 0 && (group[0].pack != pl.pack || group[0].set != pl.set) {
			if err := flush(); err != nil {
				return false, err
			}
		}
		group = append(group, pl)
	}
	if err := flush(); err != nil {
		return false, err
	}
	return !r.failed, r.finish(ctx)
}

// begin finishes what belongs to the set before, and goes over to another.
func (r *rescuer) begin(ctx context.Context, set uuid.UUID) error {
	if err := r.finish(ctx); err != nil {
		return err
	}
	r.set = set
	r.runs = r.p.runWriter(ctx, set)
	return nil
}

// finish puts what is not full, and the index run, last.
func (r *rescuer) finish(ctx context.Context) error {
	for _, kind := range []envelope.Kind{envelope.Pack, envelope.Nodes} {
		if err := r.put(ctx, kind); err != nil {
			return err
		}
	}
	if r.runs == nil {
		return nil
	}
	return r.runs.Flush()
}

func (r *rescuer) put(ctx context.Context, kind envelope.Kind) error {
	b := r.open[kind]
	if b == nil {
		return nil
	}
	delete(r.open, kind)
	packed, err := b.Finish()
	if err != nil {
		return err
	}
	defer packed.Release()
	if err := r.p.st.Put(ctx, packed.Name, packed.Object, objects.PutOptions{}); err != nil {
		return err
	}
	return r.runs.Add(kind, packed.ID, packed.Directory())
}

// copy copies frames of one pack, which are in their order.
func (r *rescuer) copy(ctx context.Context, group []placed) error {
	info := &r.t.packs[group[0].pack]
	packs := r.p.repo.Packs()
	done := make([]bool, len(group))
	d, err := packs.Directory(ctx, info.kind(), info.id)
	if err == nil {
		var frames []uint32
		var of []int
		for i, pl := range group {
			if int(pl.frame) < d.Len() && d.Entry(pl.frame).ID == pl.id {
				frames = append(frames, pl.frame)
				of = append(of, i)
			}
		}
		if len(frames) > 0 {
			err = packs.Frames(ctx, info.kind(), info.id, frames, func(i int, plain []byte) error {
				done[of[i]] = true
				return r.add(ctx, info.kind(), group[of[i]].id, plain, d.Entry(frames[i]).Hashes)
			})
		}
	}
	if err != nil && !repository.IsLost(err) {
		return err
	}
	for i, pl := range group {
		if done[i] {
			continue
		}
		if err := r.copyFromAnywhere(ctx, info, pl); err != nil {
			return err
		}
	}
	return nil
}

// copyFromAnywhere copies what its pack does not give any more: another pruner may have rescued it, or it is damaged.
func (r *rescuer) copyFromAnywhere(ctx context.Context, info *packInfo, pl placed) error {
	read := r.p.repo.ReadChunk
	if info.nodes {
		read = r.p.repo.ReadNode
	}
	plain, err := read(ctx, pl.id, chunk.Place{Pack: info.id, Frame: pl.frame})
	if errors.Is(err, repository.ErrDamaged) {
		r.failed = true
		return r.keep(ctx, pl)
	}
	if err != nil {
		return err
	}
	var hashes []uint64
	if !info.nodes {
		hashes = r.p.repo.Keys().BlockHashes(plain)
	}
	return r.add(ctx, info.kind(), pl.id, plain, hashes)
}

// keep keeps all packs that are said to hold what could not be read.
func (r *rescuer) keep(ctx context.Context, pl placed) error {
	r.t.packs[pl.pack].keep = true
	places, err := r.p.repo.Places(ctx, pl.id)
	for _, e := range places {
		if n := r.t.find(keyOf(e.Kind, e.Place.Pack)); n != none {
			r.t.packs[n].keep = true
		}
	}
	if repository.IsLost(err) {
		err = nil
	}
	return err
}

func (r *rescuer) add(ctx context.Context, kind envelope.Kind, id chunk.ID, plain []byte, hashes []uint64) error {
	b := r.open[kind]
	if b == nil {
		b = pack.NewBuilder(r.p.repo.Keys(), kind, r.set, r.p.repo.Config().Parity)
		r.open[kind] = b
	}
	encoded, enc := pack.Encode(r.plain, plain)
	if enc != pack.Raw {
		r.plain = encoded
	}
	b.Append(id, encoded, enc, len(plain), hashes)
	r.p.report.Rescued.add(int64(len(plain)))
	if b.Full() {
		return r.put(ctx, kind)
	}
	return nil
}

// runWriter writes runs of the index.
func (p *pruner) runWriter(ctx context.Context, set uuid.UUID) *index.Writer {
	return index.NewWriter(p.repo.Keys(), set, p.repo.Config().Parity, func(run pack.Packed) error {
		defer run.Release()
		p.report.RunsMade++
		return p.st.Put(ctx, run.Name, run.Object, objects.PutOptions{})
	})
}
