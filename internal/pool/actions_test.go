package pool_test

import (
	"varve/internal/block"
	"varve/internal/pool"
)

// action is one thing that can be done to what crashSetup makes, or to what
// other actions have made of it. Some are refused then, by pool and model alike.
type action struct {
	name string
	do   func(d *driver)
}

var actions = []action{
	{"create volume", func(d *driver) { d.createVolume("new", 12<<10) }},
	{"begin import", func(d *driver) {
		d.beginImport("import", 12<<10)
		d.fillImport("import", writeOp(0, 8<<10))
	}},
	{"complete import", func(d *driver) {
		d.beginImport("import", 12<<10)
		d.fillImport("import", writeOp(512, 8<<10))
		d.endImport("import", true)
	}},
	{"give up import", func(d *driver) {
		d.beginImport("import", 12<<10)
		d.fillImport("import", writeOp(0, 8<<10))
		d.endImport("import", false)
	}},
	{"create over a base", func(d *driver) { d.createOver("over", 60<<10, 44<<10+512) }},
	{"fill", func(d *driver) {
		d.createOver("over", 60<<10, 44<<10)
		d.fillBase("over", -1)
	}},
	{"write to what is filled", func(d *driver) {
		d.createOver("over", 44<<10, 36<<10+512)
		d.submit("over", writeOp(8<<10-700, 1500))
		d.submit("over", discardOp(20<<10, 8<<10))
		d.fillBase("over", 2) // the base has holes, at each of which it is asked
		d.snapshot("half", "over")
		d.submit("over", writeOp(12<<10, 8<<10))
		d.submit("over", writeOp(100, 600))
		d.fillBase("over", -1)
	}},
	{"shrink over a base", func(d *driver) {
		d.createOver("over", 44<<10, 44<<10)
		d.resize("over", 9<<10)
		d.resize("over", 60<<10)
	}},
	{"delete over a base", func(d *driver) {
		d.createOver("over", 44<<10, 44<<10)
		d.snapshot("s", "over")
		d.cloneVolume("over", "s", "overclone")
		d.deleteSnapshot("over", "s")
		d.deleteVolume("over")
		d.fillBase("overclone", 1)
		d.deleteVolume("overclone")
	}},
	{"rename", func(d *driver) { d.rename("b", "renamed") }},
	{"label", func(d *driver) { d.label("a", "role", "db") }},
	{"grow", func(d *driver) { d.resize("a", 60<<10) }},
	{"shrink", func(d *driver) { d.resize("a", 16<<10) }},
	{"shrink within a block", func(d *driver) {
		d.resize("a", 4608)
		d.resize("a", 24<<10)
	}},
	{"delete volume", func(d *driver) { d.deleteVolume("b") }},
	{"delete clone", func(d *driver) { d.deleteVolume("c") }},
	{"snapshot", func(d *driver) { d.snapshot("new", "a") }},
	{"group snapshot", func(d *driver) { d.snapshot("group", "a", "b", "c") }},
	{"delete newest snapshot", func(d *driver) { d.deleteSnapshot("a", "s3") }},
	{"delete oldest snapshot", func(d *driver) { d.deleteSnapshot("a", "s1") }},
	{"delete forked snapshot", func(d *driver) { d.deleteSnapshot("a", "s2") }},
	{"delete several snapshots", func(d *driver) { d.deleteSnapshots("a", "s1", "s2") }},
	{"protect", func(d *driver) { d.protect("a", "s1", true) }},
	{"roll back", func(d *driver) { d.rollback("a", "s3") }},
	{"roll back further", func(d *driver) { d.rollback("a", "s1") }},
	{"roll ranges back", func(d *driver) {
		d.putBack("a", "s1", pool.Range{Offset: 0, Length: 8192}, pool.Range{Offset: 32 << 10, Length: 4608})
	}},
	{"put a snapshot back", func(d *driver) {
		d.resize("a", 24<<10)
		d.putBack("a", "s2")
	}},
	{"clone", func(d *driver) { d.cloneVolume("a", "s1", "twin") }},
	{"bookmark", func(d *driver) { d.bookmark("a", "s2", "k") }},
	{"bookmark instead of a snapshot", func(d *driver) {
		d.bookmark("a", "s3", "k3")
		d.deleteSnapshot("a", "s3")
	}},
	{"delete bookmark", func(d *driver) { d.deleteBookmark("a", "k1") }},
	{"set quota", func(d *driver) { d.setQuota(1 << 30) }},
	{"checkpoint", func(d *driver) { d.checkpoint() }},
	{"reclaim", func(d *driver) { d.reclaim() }},
	{"repair", func(d *driver) { d.repair() }},
	{"reclaim by a hole", func(d *driver) {
		d.createVolume("holey", 136<<10)
		d.submit("holey", writeOp(0, 136<<10)) // one batch in one segment
		d.submit("holey", discardOp(32<<10, 68<<10))
		d.reclaim()
	}},
	{"reclaim into a pack", func(d *driver) {
		d.createVolume("cold", 64<<10)
		for i := range int64(2) { // of each segment one block is left
			d.submit("cold", writeOp(i*4096, 4096))
			d.submit("cold", writeOp(16<<10, 48<<10))
		}
		d.reclaim()
	}},
	{"write a segment on", func(d *driver) { // behind reclaim into a file that was another segment's
		for range 3 {
			d.submit("a", writeOp(0, 24<<10))
		}
	}},
	{"relayout", func(d *driver) {
		d.scatter("a")
		d.relayout("a")
	}},
	{"flush", func(d *driver) { d.flush("a") }},
	{"write", func(d *driver) { d.submit("a", writeOp(8<<10, 20<<10)) }},
	{"write across", func(d *driver) { d.submit("a", writeOp(700, 9000)) }},
	{"zero", func(d *driver) { d.submit("a", op(block.OpZero, 1000, 9000)) }},
	{"discard", func(d *driver) { d.submit("a", discardOp(0, 12<<10)) }},
	{"reopen", func(d *driver) { d.reopen() }},
}

// unflushed writes something that no flush covers.
func unflushed(d *driver) {
	if d.present().volumes["a"] != nil {
		d.submit("a", writeOp(512, 2048), writeOp(8192, 4096))
	}
	if d.present().volumes["c"] != nil {
		d.submit("c", writeOp(4096, 4096))
	}
}

func discardOp(off, n int64) *block.Op { return op(block.OpDiscard, off, n) }
