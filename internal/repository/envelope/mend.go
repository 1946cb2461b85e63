package envelope

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Report says what was bad in an object. Its zero value is that of a sound one, but for the header.
type Report struct {
	Header  Header // zero if neither copy was legible
	Missing int64  // bytes that the object was too short; negative: too long
	Headers int    // copies of the header that were bad, 0 to 2
	Tables  int    // the same of the table
	Shards  []int  // bad shards, data before parity
	Lost    []int  // those of them that parity does not restore
}

// Sound tells whether nothing was bad.
func (r Report) Sound() bool {
	return r.Missing == 0 && r.Headers == 0 && r.Tables == 0 && len(r.Shards) == 0
}

func (r Report) String() string {
	if r.Sound() {
		return "sound"
	}
	var says []string
	switch {
	case r.Missing > 0:
		says = append(says, fmt.Sprintf("%d bytes too short", r.Missing))
	case r.Missing < 0:
		says = append(says, fmt.Sprintf("%d bytes too long", -r.Missing))
	}
	if r.Headers > 0 {
		says = append(says, fmt.Sprintf("%d of 2 headers damaged", r.Headers))
	}
	if r.Tables > 0 {
		says = append(says, fmt.Sprintf("%d of 2 tables damaged", r.Tables))
	}
	if len(r.Shards) > 0 {
		says = append(says, fmt.Sprintf("%d of %d shards of %d bytes damaged", len(r.Shards), r.Header.geometry().shards(), r.Header.ShardBytes))
	}
	if len(r.Lost) > 0 {
		says = append(says, fmt.Sprintf("%d beyond repair", len(r.Lost)))
	}
	return strings.Join(says, ", ")
}

// Mend returns the object as it was written, object itself if it is that already;
// object is not changed. It fails with ErrLost if what is left does not suffice,
// and with ErrNewer. The report is of use with and without an error.
func Mend(object []byte) (mended []byte, rep Report, err error) {
	mended, rep, err = repair(object)
	if err != nil {
		return nil, rep, err
	}
	return mended, rep, nil
}

// Salvage returns what can be had of the payload of a lost object: its length is
// right, and the shards that the report has under Lost hold anything. It is for
// those who can tell by other means which parts are good. It fails with ErrLost if
// there is nothing to be had, and with ErrNewer.
func Salvage(object []byte) (Header, []byte, Report, error) {
	mended, rep, err := repair(object)
	if mended == nil {
		return Header{}, nil, rep, err
	}
	return rep.Header, layoutOf(mended, rep.Header.geometry()).payload(), rep, nil
}

// repair mends by the header in front, and if that fails by the one at the end.
// It returns what it has of the object even if it fails, or nil.
func repair(object []byte) (mended []byte, rep Report, err error) {
	if h, _, err := Open(object); err == nil {
		return object, Report{Header: h}, nil
	}
	rep.Headers, err = 2, fmt.Errorf("%w: neither of its headers is legible", ErrLost)
	if len(object) < HeaderBytes {
		return nil, rep, err
	}
	front, back := object[:HeaderBytes], object[len(object)-HeaderBytes:]
	for _, raw := range [][]byte{front, back} {
		h, decodeErr := DecodeHeader(raw)
		switch {
		case errors.Is(decodeErr, ErrNewer) && mended == nil:
			return nil, rep, decodeErr
		case decodeErr != nil:
			continue
		}
		m, r, e := repairBy(raw, h, object, &raw[0] == &front[0])
		if e == nil {
			return m, r, nil
		}
		if mended == nil {
			mended, rep, err = m, r, e
		}
		if bytes.Equal(front, back) {
			break
		}
	}
	return mended, rep, err
}

// repairBy mends an object by one of its headers, raw, which decodes to h. The
// object's beginning is where it belongs if inFront, else its end.
func repairBy(raw []byte, h Header, object []byte, inFront bool) ([]byte, Report, error) {
	g := h.geometry()
	rep := Report{Header: h, Missing: g.objectBytes() - int64(len(object))}
	// Before memory is taken: of what a forged length claims, most must be there.
	if rep.Missing > g.parityBytes()+g.payloadOffset() {
		return nil, rep, fmt.Errorf("%w: of its %d bytes %d are missing", ErrLost, g.objectBytes(), rep.Missing)
	}
	whole := make([]byte, g.objectBytes())
	if inFront {
		copy(whole, object)
	} else {
		copy(whole[max(0, rep.Missing):], object[max(0, -rep.Missing):])
	}
	l := layoutOf(whole, g)
	for _, header := range l.headers {
		if !bytes.Equal(header, raw) {
			rep.Headers++
			copy(header, raw)
		}
	}
	if err := mendShards(l, &rep); err != nil {
		return nil, rep, err
	}
	if len(rep.Lost) > 0 {
		return whole, rep, fmt.Errorf("%w: %v", ErrLost, rep)
	}
	return whole, rep, nil
}

// mendShards mends tables and shards of an object whose headers are right, and
// reports what it could not restore.
func mendShards(l layout, rep *Report) error {
	known, either := soundTable(l, rep)
	table := make([]byte, l.tableBytes())
	bad := make([][]int, l.groups)
	for s := range l.shards() {
		sum := l.sum(s)
		putEntry(table, s, sum)
		if sum != entry(either[0], s) && sum != entry(either[1], s) {
			rep.Shards = append(rep.Shards, s)
			bad[s%l.groups] = append(bad[s%l.groups], s)
		}
	}
	for i, shards := range bad {
		if len(shards) > l.perGroup {
			rep.Lost = append(rep.Lost, shards...)
			continue
		}
		if err := restoreGroup(l, i, shards); err != nil {
			return err
		}
		for _, s := range shards {
			putEntry(table, s, l.sum(s))
		}
		if known != nil && slices.ContainsFunc(shards, func(s int) bool { return entry(table, s) != entry(known, s) }) {
			rep.Lost = append(rep.Lost, shards...) // what it was restored from was not good, though it seemed so
		}
	}
	slices.Sort(rep.Lost)
	closeTable(l.headers[0], table)
	if sum := table[len(table)-4:]; known == nil && !bytes.HasSuffix(either[0], sum) && !bytes.HasSuffix(either[1], sum) {
		rep.Lost = nil // no shard is sure
		for s := range l.shards() {
			rep.Lost = append(rep.Lost, s)
		}
	}
	copy(l.tables[0], table)
	copy(l.tables[1], table)
	return nil
}

// soundTable returns a table that matches its checksum, twice; or nil, and both
// as they are: entries that are bad in one may be good in the other.
func soundTable(l layout, rep *Report) (known []byte, either [2][]byte) {
	for i, table := range l.tables {
		either[i] = bytes.Clone(table)
		switch {
		case !tableMatches(l.headers[0], table) || known != nil && !bytes.Equal(known, table):
			rep.Tables++
		case known == nil:
			known = either[i]
		}
	}
	if known != nil {
		either = [2][]byte{known, known}
	}
	return known, either
}

// restoreGroup restores the bad shards of group i, no more than its parity.
func restoreGroup(l layout, i int, bad []int) error {
	if len(bad) == 0 {
		return nil
	}
	code, err := codeFor(l.dataOf(i), l.perGroup)
	if err != nil {
		return err
	}
	var shards [][]byte
	var last []byte // the short shard, filled up
	for s := i; s < l.shards(); s += l.groups {
		b := l.bytesOf(s)
		if len(b) < l.shardBytes {
			last = make([]byte, l.shardBytes)
			copy(last, b)
			b = last
		}
		if slices.Contains(bad, s) {
			b = b[:0] // with the room to restore it in
		}
		shards = append(shards, b)
	}
	if err := code.Reconstruct(shards); err != nil {
		return err
	}
	if last != nil {
		copy(l.bytesOf(l.data-1), last)
	}
	return nil
}
