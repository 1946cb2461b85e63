package crashfs

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
)

// Policy selects which pending changes a crash image holds.
type Policy struct {
	name string
	// decide returns the changes that survive, in order and as far as they do.
	// nil: the process dies alone, the cache stays.
	decide func(pending []change) []change
}

func (p Policy) String() string { return p.name }

// ProcessCrash is the end of the process alone: everything is there, and what
// was pending still is.
var ProcessCrash = Policy{name: "process crash"}

// KeepAll is a power cut after everything pending happened to reach the disk.
var KeepAll = Policy{"keep all", func(p []change) []change { return p }}

// DropAll is a power cut before anything pending reached the disk.
var DropAll = Policy{"drop all", func([]change) []change { return nil }}

// Torn is a power cut in the middle of the last pending write: of it the first
// half of its sectors survives, all before it and nothing after it.
var Torn = Policy{"torn", func(p []change) []change {
	for i, c := range slices.Backward(p) {
		if c.Kind == Write {
			half := (c.Offset+c.Length/2)/SectorSize*SectorSize - c.Offset
			return append(slices.Clone(p[:i]), c.part(0, half)...)
		}
	}
	return p
}}

// KeepOnly keeps the pending change number i, from 0, and no other.
func KeepOnly(i int) Policy {
	return Policy{fmt.Sprintf("keep only %d", i), func(p []change) []change {
		if i >= len(p) {
			return nil
		}
		return p[i : i+1]
	}}
}

// DropOnly keeps all pending changes but number i, from 0.
func DropOnly(i int) Policy {
	return Policy{fmt.Sprintf("drop only %d", i), func(p []change) []change {
		if i >= len(p) {
			return p
		}
		return slices.Concat(p[:i], p[i+1:])
	}}
}

// Random keeps, drops or tears each pending change as the seed has it. A torn
// write keeps any of its sectors, and may have grown the file beyond them.
func Random(seed uint64) Policy {
	return Policy{fmt.Sprintf("random %d", seed), func(p []change) []change {
		rnd := rand.New(rand.NewPCG(seed, 0))
		var kept []change
		for _, c := range p {
			switch rnd.IntN(4) {
			case 0:
			case 1:
				kept = append(kept, c.sectors(rnd)...)
			default:
				kept = append(kept, c)
			}
		}
		return kept
	}}
}

// Policies returns KeepAll, DropAll, Torn, and KeepOnly and DropOnly for each of
// so many pending changes.
func Policies(pending int) []Policy {
	all := []Policy{KeepAll, DropAll, Torn}
	for i := range pending {
		all = append(all, KeepOnly(i), DropOnly(i))
	}
	return all
}

// part is the change limited to the bytes [from, to) of its data; other changes
// than writes have no parts.
func (c change) part(from, to int64) []change {
	if c.Kind != Write || from >= to {
		return nil
	}
	c.data = c.data[from:to]
	c.Offset += from
	c.Length = to - from
	return []change{c}
}

// sectors is a random part of a write; of any other change, all or nothing.
func (c change) sectors(rnd *rand.Rand) []change {
	if c.Kind != Write {
		if rnd.IntN(2) == 0 {
			return nil
		}
		return []change{c}
	}
	var kept []change
	if rnd.IntN(2) == 0 {
		grow := c
		grow.Kind, grow.data = Allocate, nil
		kept = append(kept, grow)
	}
	for from := int64(0); from < c.Length; {
		to := min(from+SectorSize-(c.Offset+from)%SectorSize, c.Length)
		if rnd.IntN(2) == 0 {
			kept = append(kept, c.part(from, to)...)
		}
		from = to
	}
	return kept
}

// Pending describes the changes that a power cut now could forget, oldest first.
// The numbers of KeepOnly and DropOnly are indices into it.
func (f *FS) Pending() []Op {
	f.mu.Lock()
	defer f.mu.Unlock()
	pending := f.pending()
	ops := make([]Op, len(pending))
	for i, c := range pending {
		ops[i] = c.Op
	}
	return ops
}

func (f *FS) pending() []change {
	var all []change
	for id := range f.reachable() {
		all = append(all, f.inodes[id].pending...)
	}
	slices.SortFunc(all, func(a, b change) int { return cmp.Compare(a.seq, b.seq) })
	return all
}

// reachable returns the inodes that a name leads to, in the cache, on disk or in
// a pending change.
func (f *FS) reachable() map[inodeID]struct{} {
	found := make(map[inodeID]struct{})
	var visit func(id inodeID)
	visit = func(id inodeID) {
		if _, known := found[id]; known || id == 0 {
			return
		}
		found[id] = struct{}{}
		in := f.inodes[id]
		if !in.isDir {
			return
		}
		for _, names := range []entries{in.cached.entries, in.durable.entries} {
			for _, child := range names {
				visit(child)
			}
		}
		for _, c := range in.pending {
			visit(c.child)
		}
	}
	visit(rootID)
	return found
}

// CrashImage returns what is found after a crash now, as a new file system. f
// goes on as it was; content is shared until one of them changes it. The image
// has no locks, handles, faults, hook or planned crash, and counts from 0.
func (f *FS) CrashImage(p Policy) *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	image := empty()
	image.capacity, image.cold = f.capacity, f.cold
	image.lastID, image.lastSeq = f.lastID, f.lastSeq
	for id := range f.reachable() {
		in := *f.inodes[id]
		in.handles = 0
		in.pending = slices.Clip(in.pending) // appending copies
		image.inodes[id] = &in
	}
	if p.decide != nil {
		image.cutPower(p.decide(f.pending()))
	}
	image.settle()
	return image
}

// cutPower leaves on every inode the durable state and what survived.
func (f *FS) cutPower(survived []change) {
	for _, in := range f.inodes {
		in.pending, in.lost = nil, false
	}
	for _, c := range survived {
		in := f.inodes[c.inode]
		in.durable = in.durable.apply(c)
	}
	for _, in := range f.inodes {
		in.cached = in.durable
	}
}

// settle counts names and pages anew from the cached state, and forgets what
// became unreachable.
func (f *FS) settle() {
	for _, in := range f.inodes {
		in.links = 0
	}
	f.inodes[rootID].links = 1
	for _, in := range f.inodes {
		for _, id := range in.cached.entries {
			f.inodes[id].links = 1
		}
	}
	f.sweep()
	for _, in := range f.inodes {
		f.used += in.cached.content.allocated()
		f.release(in)
	}
}
