package envelope

const (
	minShardBytes = 512
	maxShardBytes = 64 << 10
	maxGroupData  = 100 // data shards of a group
	minParity     = 2   // parity shards of a group: a hole shorter than a shard touches two
)

// geometry is how a payload is cut. Shard s belongs to group s mod groups; the
// first shards of a group are data, the last perGroup parity. So every run of
// groups × perGroup shards, wherever it begins, takes from each group no more
// than its parity restores.
type geometry struct {
	payloadBytes int64
	shardBytes   int
	data         int // data shards
	groups       int
	perGroup     int // parity shards of each group
}

// geometryOf cuts a payload of so many bytes, not negative.
func geometryOf(payloadBytes int64, parityPercent int) geometry {
	g := geometry{payloadBytes: payloadBytes, shardBytes: minShardBytes}
	for g.shardBytes < maxShardBytes && int64(g.shardBytes)*maxGroupData < payloadBytes {
		g.shardBytes *= 2
	}
	g.data = max(1, int(divideUp(payloadBytes, int64(g.shardBytes))))
	g.groups = divideUp(g.data, maxGroupData)
	if parityPercent > 0 {
		g.perGroup = max(minParity, divideUp(divideUp(g.data, g.groups)*parityPercent, 100))
	}
	return g
}

func divideUp[T int | int64](a, b T) T { return (a + b - 1) / b }

func (g geometry) parity() int { return g.groups * g.perGroup }

func (g geometry) shards() int { return g.data + g.parity() }

func (g geometry) tableBytes() int { return 4*g.shards() + 4 }

func (g geometry) payloadOffset() int64 { return HeaderBytes + int64(g.tableBytes()) }

func (g geometry) parityBytes() int64 { return int64(g.parity()) * int64(g.shardBytes) }

func (g geometry) objectBytes() int64 {
	return 2*g.payloadOffset() + g.payloadBytes + g.parityBytes()
}

// dataOf returns how many data shards group i has.
func (g geometry) dataOf(i int) int { return divideUp(g.data-i, g.groups) }

// shard returns where shard s lies in the object. The last data shard may be short.
func (g geometry) shard(s int) (from, to int64) {
	size := int64(g.shardBytes)
	if s < g.data {
		from = int64(s) * size
		to = min(from+size, g.payloadBytes)
	} else {
		from = g.payloadBytes + int64(s-g.data)*size
		to = from + size
	}
	return g.payloadOffset() + from, g.payloadOffset() + to
}
