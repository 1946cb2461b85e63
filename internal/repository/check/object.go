package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"

	"varve/internal/objects"
	"varve/internal/repository"
	"varve/internal/repository/envelope"
)

// condition is what an object was found to be.
type condition uint8

const (
	sound    condition = iota
	mended             // a sound copy is there, and what was damaged is gone, or locked
	unmended           // it can be read by its parity, and no copy could be put
	gone               // it was deleted meanwhile
	unknown            // nothing that this program can tell anything of
	missing            // of what is kept three times; or nothing of it can be had
)

// finding is what was found of an object.
type finding struct {
	condition condition
	frames    []uint32 // of a pack that is lost: those that are; none: all
	message   string
	foreign   bool // there is another object in its place, which is whole
}

// version is what was found under one of an object's names.
type version struct {
	name  string
	state state
	bytes []byte // as it was written, if it is sound or parity suffices
	why   string // it is not sound
	// frames that cannot be read, of a pack that is lost
	frames []uint32
}

// state of a version, the best first.
type state uint8

const (
	good    state = iota
	parity        // damaged, and its parity suffices
	newer         // of a version of the format, or a generation of keys, that is not known here
	part          // a pack of which some frames are lost
	bad           // nothing can be had of it
	other         // whole, but another object, or of another repository
	deleted       // gone
)

// damaged tells that a version is of the object, and not as it was written.
func (v *version) damaged() bool { return v.state == parity || v.state == part || v.state == bad }

// object looks at an object and its copies, and mends it. The object itself is read into room.
func (c *checker) object(ctx context.Context, i item, room *[]byte) (finding, error) {
	if i.copies {
		room = nil // of what size it is is not known
	}
	v, err := c.version(ctx, i, i.name, room)
	if err != nil {
		return finding{}, err
	}
	if v.state == good && !i.copies {
		return finding{}, nil
	}
	all := []version{v}
	names, err := envelope.Repairs(ctx, c.st, i.name)
	if err != nil {
		return finding{}, err
	}
	for _, name := range names {
		copied, err := c.version(ctx, i, name, nil)
		if err != nil {
			return finding{}, err
		}
		all = append(all, copied)
	}
	best := all[0]
	for _, v := range all {
		if v.state < best.state {
			best = v
		}
	}
	switch best.state {
	case good, parity:
		return c.mend(ctx, i, best, all)
	case newer:
		return finding{condition: unknown, message: best.why}, nil
	case deleted:
		return finding{condition: gone}, nil
	}
	return c.replace(ctx, i, finding{condition: missing, frames: best.frames, message: best.why, foreign: best.state == other && i.kind != envelope.Index}, best, all)
}

// version looks at what is stored under a name. What is not sound is read twice: it may be the reading that went wrong.
func (c *checker) version(ctx context.Context, i item, name string, room *[]byte) (version, error) {
	v, err := c.judge(ctx, i, name, room)
	if err != nil || v.state == good || v.state == newer || v.state == deleted {
		return v, err
	}
	again, err := c.judge(ctx, i, name, room)
	if err == nil && again.state == good {
		c.note("%s: read wrong once (%s), and right when it was read again", name, v.why)
	}
	return again, err
}

func (c *checker) judge(ctx context.Context, i item, name string, room *[]byte) (version, error) {
	raw, err := c.get(ctx, name, i.bytes, room)
	switch {
	case errors.Is(err, objects.ErrNotFound):
		return version{name: name, state: deleted}, nil
	case errors.Is(err, objects.ErrTooLarge):
		return version{name: name, state: bad, why: "larger than any object"}, nil
	case err != nil:
		return version{}, err
	}
	v := version{name: name, bytes: raw}
	h, _, err := envelope.Open(raw)
	if errors.Is(err, envelope.ErrDamaged) {
		var report envelope.Report
		v.state = parity
		v.bytes, report, err = envelope.Mend(raw)
		v.why, h = report.String(), report.Header
		if errors.Is(err, envelope.ErrLost) {
			v.state, v.bytes, v.why = bad, raw, err.Error()
			err = nil
		}
	}
	if errors.Is(err, envelope.ErrNewer) {
		return version{name: name, state: newer, why: err.Error()}, nil
	}
	if err != nil {
		return v, err
	}
	if h.Version != 0 { // it has a header
		if err := h.Belongs(i.name, c.repository, i.kind); err != nil {
			return version{name: name, state: other, why: err.Error()}, nil
		}
	}
	return c.open(ctx, i, v)
}

// get reads an object whole, into room if it fits. Where the medium fails in some places, the rest is returned, with zeros between.
func (c *checker) get(ctx context.Context, name string, size int64, room *[]byte) ([]byte, error) {
	if room == nil || size > objects.MaxObjectBytes {
		return c.st.Get(ctx, name)
	}
	if int64(cap(*room)) < size {
		*room = make([]byte, size)
	}
	raw := (*room)[:size:size]
	err := c.st.Read(ctx, name, raw, 0)
	switch {
	case errors.Is(err, syscall.EIO):
		return raw, c.pieces(ctx, name, raw, 0, 1<<20)
	case errors.Is(err, objects.ErrShort): // it has changed since it was listed
		return c.st.Get(ctx, name)
	}
	return raw, err
}

// pieces reads what of an object can be read, in smaller pieces where one fails.
func (c *checker) pieces(ctx context.Context, name string, p []byte, off int64, size int) error {
	const smallest = 4096
	for len(p) > 0 {
		n := min(len(p), size)
		err := c.st.Read(ctx, name, p[:n], off)
		if errors.Is(err, syscall.EIO) {
			clear(p[:n])
			err = nil
			if size > smallest {
				err = c.pieces(ctx, name, p[:n], off, max(size/16, smallest))
			}
		}
		if err != nil && !errors.Is(err, objects.ErrShort) {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// mend sees to it that a sound copy of an object is there and nothing else. best is a version of which all is known.
func (c *checker) mend(ctx context.Context, i item, best version, all []version) (finding, error) {
	f := finding{}
	for _, v := range all {
		switch {
		case v.damaged() && f.condition == sound:
			f = finding{condition: mended, message: v.why}
		case v.state == newer || v.state == other:
			c.note("%s: %s; a sound copy is there, so it is left alone", v.name, v.why)
		}
	}
	if f.condition == sound && best.state == good {
		return f, nil // mended by an earlier check
	}
	if best.state == parity {
		why, err := c.put(ctx, i, best, all)
		if err != nil {
			return f, err
		}
		if why != "" {
			return finding{condition: unmended, message: f.message + "; " + why}, nil
		}
	}
	kept, err := c.clear(ctx, all)
	if kept != "" {
		f.message += "; " + kept
	}
	return f, err
}

// put puts a mended copy, and reads it again; why it cannot be put, if it cannot.
func (c *checker) put(ctx context.Context, i item, best version, all []version) (why string, err error) {
	if err := c.write.why(); err != nil {
		return err.Error(), nil
	}
	condemned, err := c.condemned(ctx, i)
	if err != nil || condemned {
		return "it is condemned, so no copy was put: a prune will delete it", err
	}
	number := 0
	for _, v := range all {
		_, n := envelope.Original(v.name)
		number = max(number, n)
	}
	for {
		number++
		name := fmt.Sprintf("%s-%d", i.name, number)
		err := c.st.Put(ctx, name, [][]byte{best.bytes}, objects.PutOptions{})
		if err != nil && !errors.Is(err, objects.ErrExists) {
			return err.Error(), c.write.refused(err)
		}
		// Another check may have been faster: then what it put is as good.
		read, err := c.judge(ctx, i, name, nil)
		switch {
		case err != nil:
			return "", err
		case read.state == deleted:
			return "its copy was deleted at once, by a prune", nil
		case read.state == good && bytes.Equal(read.bytes, best.bytes):
			return "", nil
		}
		if number > len(all)+maxTries {
			return fmt.Sprintf("what was put as %s does not read as it was written", name), nil
		}
	}
}

// maxTries is how many names are tried for a copy.
const maxTries = 8

// condemned tells whether an object is a pack that is condemned: nobody may find it there again once it was deleted.
func (c *checker) condemned(ctx context.Context, i item) (bool, error) {
	p, ok := packOf(i.name)
	if !ok || c.repo == nil || i.kind == envelope.Index {
		return false, nil
	}
	all, err := c.repo.Condemned(ctx)
	if repository.IsLost(err) || unknownHere(err) {
		return false, nil // a mark that cannot be read is told by itself
	}
	return all[p.id], err
}

// clear deletes damaged versions, the copies first. What may not be deleted stays, and is told.
func (c *checker) clear(ctx context.Context, all []version) (kept string, err error) {
	if err := c.write.why(); err != nil {
		return "what is damaged could not be deleted", nil
	}
	for n := len(all) - 1; n >= 0; n-- {
		if !all[n].damaged() {
			continue
		}
		err := c.st.Delete(ctx, all[n].name)
		if errors.Is(err, objects.ErrLocked) {
			kept = all[n].name + " is locked, and stays"
			continue
		}
		if err != nil {
			return "what is damaged could not be deleted", c.write.refused(err)
		}
	}
	return kept, nil
}
