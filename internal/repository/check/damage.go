package check

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
)

// damage is what was found, by the names of objects.
type damage struct {
	mu      sync.Mutex
	objects map[string]*Damaged
	more    int64
}

func (d *damage) init() { d.objects = map[string]*Damaged{} }

// add notes damage of an object; of several findings the worst counts, and each is told once.
func (d *damage) add(object string, state State, message string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, ok := d.objects[object]
	switch {
	case ok:
		known.State = max(known.State, state)
		if !strings.Contains(known.Message, message) {
			known.Message += "; " + message
		}
	case len(d.objects) >= MaxDamage:
		d.more++
	default:
		d.objects[object] = &Damaged{Object: object, State: state, Message: message}
	}
}

func (d *damage) has(object string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, has := d.objects[object]
	return has
}

// settle changes what was found of an object that turned out otherwise.
func (d *damage) settle(object string, state State, message string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if known, ok := d.objects[object]; ok {
		known.State, known.Message = state, known.Message+"; "+message
	}
}

// forget takes a finding back: it was no damage.
func (d *damage) forget(object string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.objects, object)
}

// harms notes that an object harms a backup. Backups come one after the other.
func (d *damage) harms(object, backup string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, ok := d.objects[object]
	if !ok || len(known.Backups) >= MaxBackups {
		return
	}
	if n := len(known.Backups); n == 0 || known.Backups[n-1] != backup {
		known.Backups = append(known.Backups, backup)
	}
}

func (d *damage) lostOfKind(kind envelope.Kind) (names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, o := range d.objects {
		if k, ok := kindOf(name); ok && k == kind && o.State == Lost {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (d *damage) sorted() (all []Damaged, more int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(d.objects)) {
		all = append(all, *d.objects[name])
	}
	return all, d.more
}

// packKey names a pack of chunks, nodes or index entries.
type packKey struct {
	kind envelope.Kind
	id   chunk.PackID
}

// place is where a chunk or node is said to be.
type place struct {
	packKey
	frame uint32
}

// lost is what cannot be read of the packs that are there.
type lost struct {
	mu      sync.Mutex
	packs   map[packKey]bool
	frames  map[place]bool
	foreign map[packKey]string // packs that are another object, and what was found
}

func (l *lost) init() {
	l.packs, l.frames, l.foreign = map[packKey]bool{}, map[place]bool{}, map[packKey]string{}
}

// add notes the frames of a pack that are lost; none means all.
func (l *lost) add(p packKey, f finding) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.foreign {
		l.foreign[p] = f.message
	}
	if len(f.frames) == 0 {
		l.packs[p] = true
	}
	for _, f := range f.frames {
		l.frames[place{p, f}] = true
	}
}

func (l *lost) has(p place) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.packs[p.packKey] || l.frames[p]
}
