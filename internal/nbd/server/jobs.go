package server

import (
	"encoding/binary"

	"varve/internal/block"
	"varve/internal/nbd"
)

const (
	// maxWorkers is how many requests of a connection can wait for the device at a time.
	maxWorkers = 64
	// inlineRead is the longest READ that the reading goroutine answers itself, in bytes.
	inlineRead = 128 << 10
	// maxReadRuns is how many chunks the reply to a READ has at most, but for a
	// last one with all that is left; their headers fit into a buffer's headroom.
	maxReadRuns = 64
	// maxStatusRuns is how many runs a context's reply to BLOCK_STATUS has at most.
	maxStatusRuns = 4096
	// cacheStep is how much CACHE reads at a time, and maxCache at all, in bytes.
	cacheStep = 256 << 10
	maxCache  = 32 << 20
)

type jobKind uint8

const (
	jobRead  jobKind = iota
	jobWrite         // long ones: with payload, or zeroing
	jobFlush         // answers all of flushed
	jobStatus
	jobCache
)

// job is one piece of work for a worker.
type job struct {
	kind    jobKind
	request nbd.Request
	flushed []nbd.Request
	payload *buffer // of jobWrite, nil for zeroing
	reply   *buffer // empty, large enough for any reply to the job
}

// dispatch hands j to a worker, and waits for one if all are busy.
func (t *transmission) dispatch(j job) {
	w := &t.workers
	w.pending.Add(1)
	select {
	case w.jobs <- j:
		return
	default:
	}
	if w.running < maxWorkers {
		w.running++
		w.ended.Add(1)
		go t.work(j)
		return
	}
	t.sendOutput()
	w.jobs <- j
}

// work is the body of a worker.
func (t *transmission) work(j job) {
	defer t.workers.ended.Done()
	for ok := true; ok; j, ok = <-t.workers.jobs {
		t.do(&j)
		t.outbox.send(j.reply)
		t.workers.pending.Done()
	}
}

// do performs j and leaves the answer in j.reply.
func (t *transmission) do(j *job) {
	var err error
	req := &j.request
	switch j.kind {
	case jobRead:
		if err = t.readInto(j.reply, req); err == nil {
			return
		}
	case jobWrite:
		err = t.write(j)
	case jobFlush:
		t.flush(j)
		return
	case jobStatus:
		if err = t.status(j.reply, req); err == nil {
			return
		}
	case jobCache:
		err = t.cache(j.reply, req)
	}
	j.reply.data = j.reply.data[:0]
	if err == nil {
		t.appendDone(j.reply, req)
		return
	}
	t.session.counters.failedRequests.Add(1)
	t.appendError(j.reply, req, t.deviceFailed(req, err))
}

// write performs a write-type request on its own.
func (t *transmission) write(j *job) error {
	req := &j.request
	op := block.Op{Kind: opKind(req), Offset: int64(req.Offset), Length: int64(req.Length)}
	if j.payload != nil {
		op.Data = j.payload.data
	}
	t.device.Submit(t.ctx, []*block.Op{&op})
	if j.payload != nil {
		t.release(j.payload)
	}
	if op.Err == nil && req.Flags&nbd.CmdFlagFUA != 0 {
		return t.device.Flush(t.ctx)
	}
	return op.Err
}

// flush makes durable what was performed, and answers all who waited for it.
func (t *transmission) flush(j *job) {
	err := t.device.Flush(t.ctx)
	for i := range j.flushed {
		req := &j.flushed[i]
		if err == nil {
			t.appendDone(j.reply, req)
			continue
		}
		t.session.counters.failedRequests.Add(1)
		t.appendError(j.reply, req, t.deviceFailed(req, err))
	}
}

// statusBytes bounds the reply to a BLOCK_STATUS.
func (t *transmission) statusBytes(req *nbd.Request) int {
	return len(t.contexts)*(t.chunkSize()+8+16*statusRuns(req)) + maxReply
}

func statusRuns(req *nbd.Request) int {
	if req.Flags&nbd.CmdFlagReqOne != 0 {
		return 1
	}
	return maxStatusRuns
}

// status answers BLOCK_STATUS: one chunk for each selected context.
func (t *transmission) status(out *buffer, req *nbd.Request) error {
	be := binary.BigEndian
	for i, c := range t.contexts {
		runs, err := c.Status(t.ctx, int64(req.Offset), int64(req.Length), statusRuns(req))
		if err != nil {
			return err
		}
		n, last := t.chunkSize(), i == len(t.contexts)-1
		runs = runs[:min(len(runs), statusRuns(req))]
		if len(runs) == 0 {
			return errNoStatus
		}
		if t.extended {
			payload := 8 + 16*len(runs)
			b := out.extend(n + payload)
			t.putChunk(b, req, nbd.ReplyBlockStatusExt, payload, last)
			be.PutUint32(b[n:], c.id)
			be.PutUint32(b[n+4:], uint32(len(runs)))
			for k, r := range runs {
				be.PutUint64(b[n+8+16*k:], uint64(r.Length))
				be.PutUint64(b[n+16+16*k:], uint64(r.Flags))
			}
			continue
		}
		payload := 4 + 8*len(runs)
		b := out.extend(n + payload)
		t.putChunk(b, req, nbd.ReplyBlockStatus, payload, last)
		be.PutUint32(b[n:], c.id)
		for k, r := range runs {
			// No run is longer than the request, whose length has 32 bits.
			be.PutUint32(b[n+4+8*k:], uint32(r.Length))
			be.PutUint32(b[n+8+8*k:], r.Flags)
		}
	}
	return nil
}

// cache reads a range so that the device may keep it; beyond maxCache the hint is ignored.
func (t *transmission) cache(scratch *buffer, req *nbd.Request) error {
	off, end := int64(req.Offset), int64(req.Offset+min(req.Length, maxCache))
	for off < end {
		n := min(end-off, cacheStep)
		scratch.data = scratch.data[:0]
		if err := t.device.ReadAt(t.ctx, scratch.extend(int(n)), off); err != nil {
			return err
		}
		off += n
	}
	return nil
}
