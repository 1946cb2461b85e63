package crashfs

import (
	"maps"
	"path"
)

// inodeID names an inode; forks keep the ids.
type inodeID uint64

// rootID is the directory "/".
const rootID inodeID = 1

// entries are a directory's names: an immutable map, replaced when changed.
type entries map[string]inodeID

// with returns a copy in which name leads to id; 0 removes it.
func (e entries) with(name string, id inodeID) entries {
	c := make(entries, len(e)+1)
	maps.Copy(c, e)
	c[name] = id
	if id == 0 {
		delete(c, name)
	}
	return c
}

// state is what an inode holds, as seen by readers or as it is on disk.
type state struct {
	content content // of a file
	entries entries // of a directory
}

// inode is a file or directory. All it refers to is immutable, so a copy of the
// struct is a copy of the inode.
type inode struct {
	isDir   bool
	cached  state // what readers see
	durable state // what is on disk for certain
	// pending are the changes to cached that are not durable yet, oldest first.
	pending []change
	// lost: a failed sync has dropped changes, so that cached may be more than
	// durable plus pending.
	lost bool

	links   int // names in cached directories: 0 or 1
	handles int // open files
}

// change is an operation on one inode that a crash may forget.
type change struct {
	Op
	seq   uint64 // orders the changes of all inodes
	inode inodeID
	data  []byte  // of Write
	child inodeID // of Create, Mkdir, Remove, Rename: what the name leads to
}

// apply returns s after the whole change. Where earlier changes of names did not
// survive, a later one may find another inode under its name, or none, or the
// name taken; then it is moot, so that an inode never gets two names and none
// is removed in the place of another.
func (s state) apply(c change) state {
	switch c.Kind {
	case Write:
		s.content = s.content.write(c.Offset, c.data)
	case Truncate:
		s.content = s.content.truncate(c.Offset)
	case Allocate:
		s.content = s.content.allocate(c.Offset, c.Offset+c.Length)
	case PunchHole:
		s.content = s.content.punch(c.Offset, c.Offset+c.Length)
	case Create, Mkdir:
		if _, taken := s.entries[path.Base(c.Path)]; !taken {
			s.entries = s.entries.with(path.Base(c.Path), c.child)
		}
	case Remove, Rename:
		if s.entries[path.Base(c.Path)] != c.child {
			break
		}
		s.entries = s.entries.with(path.Base(c.Path), 0)
		if c.Kind == Rename {
			s.entries[path.Base(c.NewPath)] = c.child
		}
	}
	return s
}

// written is durable plus pending: what the disk holds once all is written out.
func (in *inode) written() state {
	s := in.durable
	for _, c := range in.pending {
		s = s.apply(c)
	}
	return s
}

// sync makes all pending changes durable; what an earlier failure lost stays lost.
func (in *inode) sync() {
	if in.lost {
		in.durable = in.written()
	} else {
		in.durable = in.cached
	}
	in.pending = nil
}

// failSync forgets that there was anything to write, as the kernel does.
func (in *inode) failSync() {
	in.lost = true
	in.pending = nil
}
