package crashfs

// pageSize is the unit of allocation, in bytes.
const pageSize = 4096

// fanoutBits: a node above the pages has 64 children.
const fanoutBits = 6

// maxFileSize keeps every offset representable in a tree; 256 TiB.
const maxFileSize = int64(pageSize) << (6 * fanoutBits)

// content is what a file holds at one moment: an immutable value. Changing it
// makes another that shares all untouched pages, so that keeping or forking
// every state of a file costs next to nothing.
type content struct {
	root   *node // nil: nothing allocated
	height int   // of root; 0 is a page
	size   int64 // in bytes
}

// node is a page (data) or an inner node (kids); a nil node is a hole.
type node struct {
	pages int64 // allocated in this subtree
	data  *[pageSize]byte
	kids  *[1 << fanoutBits]*node
}

// zeroPage is every page that is allocated and not written.
var zeroPage = &node{pages: 1, data: new([pageSize]byte)}

// span is how many bytes a node of that height covers.
func span(height int) int64 { return pageSize << (height * fanoutBits) }

func (c content) allocated() int64 {
	if c.root == nil {
		return 0
	}
	return c.root.pages
}

// page returns the page that holds the byte at off, nil for a hole.
func (c content) page(off int64) *node {
	if off >= span(c.height) {
		return nil
	}
	n := c.root
	for h := c.height; h > 0 && n != nil; h-- {
		n = n.kids[off/span(h-1)%(1<<fanoutBits)]
	}
	return n
}

// read fills p from off on and returns how much lay within the size.
func (c content) read(p []byte, off int64) int {
	if off >= c.size {
		return 0
	}
	p = p[:min(int64(len(p)), c.size-off)]
	for done := 0; done < len(p); {
		at := off + int64(done)
		part := p[done:min(int64(len(p)), int64(done)+pageSize-at%pageSize)]
		if n := c.page(at); n != nil {
			copy(part, n.data[at%pageSize:])
		} else {
			clear(part)
		}
		done += len(part)
	}
	return len(p)
}

// write puts data at off. Whole pages are shared with data, which must not change any more.
func (c content) write(off int64, data []byte) content {
	if len(data) == 0 {
		return c
	}
	end := off + int64(len(data))
	c = c.grownTo(end)
	c.root = edit{page: func(old *node, at, lo, hi int64) *node {
		src := data[at+lo-off:]
		if hi-lo == pageSize {
			return &node{pages: 1, data: (*[pageSize]byte)(src)}
		}
		return overlay(old, lo, src[:hi-lo])
	}}.apply(c.root, c.height, 0, off, end)
	return c
}

// punch makes [off, end) zero and frees the pages wholly inside.
func (c content) punch(off, end int64) content {
	end = min(end, span(c.height))
	if off >= end {
		return c
	}
	c.root = edit{
		whole: func(*node, int) (*node, bool) { return nil, true },
		page: func(old *node, _, lo, hi int64) *node {
			if old == nil {
				return nil
			}
			return overlay(old, lo, zeroPage.data[:hi-lo])
		},
	}.apply(c.root, c.height, 0, off, end)
	return c
}

// allocate gives every hole in [off, end) a page of zeros and grows the size to end.
func (c content) allocate(off, end int64) content {
	c = c.grownTo(end)
	c.root = edit{
		whole: func(n *node, height int) (*node, bool) {
			if n == nil {
				return zeroTree(height), true
			}
			return n, n.pages == span(height)/pageSize
		},
		page: func(old *node, _, _, _ int64) *node {
			if old == nil {
				return zeroPage
			}
			return old
		},
	}.apply(c.root, c.height, 0, off, end)
	return c
}

// truncate sets the size and frees what is beyond.
func (c content) truncate(size int64) content {
	if size < c.size {
		c = c.punch(size, maxFileSize)
	}
	c.size = size
	return c
}

// grownTo makes the tree cover end, and the size too.
func (c content) grownTo(end int64) content {
	for end > span(c.height) {
		if c.root != nil {
			c.root = &node{pages: c.root.pages, kids: &[1 << fanoutBits]*node{c.root}}
		}
		c.height++
	}
	c.size = max(c.size, end)
	return c
}

// edit rebuilds the part of a tree that covers a range of bytes.
type edit struct {
	// whole replaces a subtree that lies entirely inside the range, or declines.
	// It may be nil.
	whole func(n *node, height int) (*node, bool)
	// page replaces the page at byte offset at, of which [lo, hi) is in the range.
	page func(old *node, at, lo, hi int64) *node
}

// apply edits [from, to) of the subtree n, which begins at byte offset base.
func (e edit) apply(n *node, height int, base, from, to int64) *node {
	lo, hi := max(from-base, 0), min(to-base, span(height))
	if e.whole != nil && lo == 0 && hi == span(height) {
		if r, ok := e.whole(n, height); ok {
			return r
		}
	}
	if height == 0 {
		return e.page(n, base, lo, hi)
	}
	r := &node{kids: new([1 << fanoutBits]*node)}
	if n != nil {
		*r.kids, r.pages = *n.kids, n.pages
	}
	step := span(height - 1)
	for i := lo / step; i*step < hi; i++ {
		old := r.kids[i]
		r.kids[i] = e.apply(old, height-1, base+i*step, from, to)
		r.pages += r.kids[i].count() - old.count()
	}
	if r.pages == 0 {
		return nil
	}
	return r
}

func (n *node) count() int64 {
	if n == nil {
		return 0
	}
	return n.pages
}

// overlay is the page old (nil: zeros) with data at lo.
func overlay(old *node, lo int64, data []byte) *node {
	buf := new([pageSize]byte)
	if old != nil {
		*buf = *old.data
	}
	copy(buf[lo:], data)
	return &node{pages: 1, data: buf}
}

// zeroTree is a subtree of allocated, unwritten pages.
func zeroTree(height int) *node {
	n := zeroPage
	for range height {
		parent := &node{pages: n.pages << fanoutBits, kids: new([1 << fanoutBits]*node)}
		for i := range parent.kids {
			parent.kids[i] = n
		}
		n = parent
	}
	return n
}
