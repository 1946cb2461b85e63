package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"varve/internal/block"
	"varve/internal/nbd"
)

// maxBatch is how many write-type requests are performed together, and opsBytes
// what they need beside their payload.
const (
	maxBatch = 512
	opsBytes = maxBatch * 128
)

// longOp is the length from which on a request without payload may take long
// enough not to hold up the requests behind it.
const longOp = 1 << 20

// errDisconnect ends the transmission at the client's request.
var errDisconnect = errors.New("client disconnected")

// transmission is the second phase of a connection. All fields but outbox,
// budget and workers belong to the reading goroutine, which is the one that runs run.
type transmission struct {
	*connection
	replyForm
	device   block.Device
	resident block.ResidentReader // nil if the device is none
	readOnly bool
	contexts []selectedContext

	input   []byte // input[next:end] is received and not parsed yet
	next    int
	end     int
	skip    uint64 // bytes of a refused payload that are still to come
	size    int    // length of a request header
	refuses bool   // the server is shutting down

	// The batch: writes among the requests parsed since the last submit.
	ops      [maxBatch]block.Op
	batch    []*block.Op
	requests [maxBatch]nbd.Request // of ops

	durable []nbd.Request // to be answered after a flush
	output  *buffer       // replies not sent yet; nil if none

	outbox  outbox
	budget  *budget
	workers workers
}

func newTransmission(h *handshake) *transmission {
	t := &transmission{
		connection: h.connection,
		replyForm:  replyForm{structured: h.structured, extended: h.extended},
		device:     h.export.Device,
		readOnly:   h.export.ReadOnly,
		contexts:   h.contexts,
		input:      make([]byte, inputBytes),
		size:       nbd.RequestSize,
		budget:     newBudget(budgetBytes),
	}
	t.resident, _ = t.device.(block.ResidentReader)
	if t.extended {
		t.size = nbd.ExtendedRequestSize
	}
	t.batch = make([]*block.Op, 0, maxBatch)
	// What the handshake has read beyond its last option.
	t.end = copy(t.input, h.buffered())
	t.outbox = outbox{conn: t.stream, timeout: t.server.cfg.WriteTimeout, budget: t.budget, failed: func(error) { t.abort() }}
	t.workers.jobs = make(chan job)
	t.settle = t.workers.wait
	return t
}

// run serves requests until the client leaves or is dropped, and returns when
// none of them is under way any more. A client that left in order, and one that was
// quiet when the server shut down, is no error.
func (t *transmission) run() error {
	err := t.rounds()
	t.workers.stop()
	if errors.Is(err, errDisconnect) {
		return nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && t.draining.Load() {
		t.linger()
		return nil
	}
	return err
}

// rounds alternates between receiving and performing what was received.
func (t *transmission) rounds() error {
	for {
		t.refuses = t.draining.Load()
		err := t.parse()
		t.submit()
		t.sendOutput()
		if err != nil {
			return err
		}
		if err := t.receive(); err != nil {
			return err
		}
	}
}

// receive waits for more input, having moved what is left to the front.
func (t *transmission) receive() error {
	if t.next > 0 {
		t.end = copy(t.input, t.input[t.next:t.end])
		t.next = 0
	}
	n, err := t.read(t.input[t.end:])
	t.end += n
	if n > 0 {
		return nil
	}
	return err
}

// parse takes all complete requests out of the input. Cheap ones are answered
// into the output, writes are added to the batch, the others go to workers.
func (t *transmission) parse() error {
	for {
		if t.skip > 0 {
			n := min(t.skip, uint64(t.end-t.next))
			t.next += int(n)
			t.skip -= n
		}
		if t.skip > 0 || t.end-t.next < t.size {
			return nil
		}
		if t.aborted.Load() {
			return net.ErrClosed
		}
		var req nbd.Request
		if err := req.Parse(t.input[t.next:], t.extended); err != nil {
			return fmt.Errorf("request: %w", err)
		}
		length := t.payloadLength(&req)
		var refused *refusal
		if t.refuses {
			refused = &refusal{nbd.ESHUTDOWN, "server is shutting down"}
		} else {
			refused = t.check(&req)
		}
		switch {
		case req.Cmd == nbd.CmdDisc:
			return errDisconnect
		case refused != nil:
			if length > maxSkipped {
				return fmt.Errorf("request with %d bytes of payload: %w", length, errProtocol)
			}
			t.next += t.size
			t.skip = length
			t.refuse(&req, *refused)
			continue
		case length > inlinePayload:
			t.next += t.size
			if err := t.longWrite(&req); err != nil {
				return err
			}
			continue
		case uint64(t.end-t.next-t.size) < length:
			return nil
		}
		t.next += t.size
		payload := t.input[t.next : t.next+int(length)]
		t.next += int(length)
		t.perform(&req, payload)
	}
}

// perform does what a checked request asks for, or lets it be done.
func (t *transmission) perform(req *nbd.Request, payload []byte) {
	c := &t.session.counters
	switch req.Cmd {
	case nbd.CmdRead:
		c.readRequests.Add(1)
		c.readBytes.Add(int64(req.Length))
		t.performRead(req)
	case nbd.CmdWrite, nbd.CmdWriteZeroes, nbd.CmdTrim:
		c.writeRequests.Add(1)
		c.writtenBytes.Add(int64(len(payload)))
		t.wrote()
		if req.Cmd != nbd.CmdWrite && req.Length >= longOp {
			t.dispatch(job{kind: jobWrite, request: *req, reply: t.newBuffer(maxReply)})
			return
		}
		t.add(req, payload)
	case nbd.CmdFlush:
		c.otherRequests.Add(1)
		t.durable = append(t.durable, *req)
	case nbd.CmdCache:
		c.otherRequests.Add(1)
		t.dispatch(job{kind: jobCache, request: *req, reply: t.newBuffer(cacheStep)})
	case nbd.CmdBlockStatus:
		c.otherRequests.Add(1)
		t.dispatch(job{kind: jobStatus, request: *req, reply: t.newBuffer(t.statusBytes(req))})
	}
}

func (t *transmission) wrote() {
	if !t.session.wrote.Load() {
		t.session.wrote.Store(true)
	}
}

// add puts a write-type request into the batch.
func (t *transmission) add(req *nbd.Request, payload []byte) {
	if len(t.batch) == maxBatch {
		t.submit()
	}
	i := len(t.batch)
	t.requests[i] = *req
	t.ops[i] = block.Op{Kind: opKind(req), Offset: int64(req.Offset), Length: int64(req.Length)}
	if req.Cmd == nbd.CmdWrite {
		t.ops[i].Data = payload
	}
	t.batch = append(t.batch, &t.ops[i])
}

// submit performs the batch, and hands the requests that wait for durability,
// FLUSH and those with FUA, to a worker.
func (t *transmission) submit() {
	if len(t.batch) > 0 {
		t.device.Submit(t.ctx, t.batch)
		for i, op := range t.batch {
			req := &t.requests[i]
			switch {
			case op.Err != nil:
				t.refuse(req, t.deviceFailed(req, op.Err))
			case req.Flags&nbd.CmdFlagFUA != 0:
				t.durable = append(t.durable, *req)
			default:
				t.appendDone(t.room(maxReply), req)
			}
			op.Data, op.Err = nil, nil
		}
		t.batch = t.batch[:0]
	}
	if len(t.durable) > 0 {
		t.dispatch(job{kind: jobFlush, flushed: t.durable, reply: t.newBuffer(maxReply * len(t.durable))})
		t.durable = nil
	}
}

// longWrite receives the payload of a WRITE that is too long for the input buffer.
func (t *transmission) longWrite(req *nbd.Request) error {
	// The payload may take its time; whoever is complete does not wait for it.
	t.submit()
	t.sendOutput()
	n := int(req.Length)
	payload := t.newBuffer(n)
	p := payload.extend(n)
	have := copy(p, t.input[t.next:t.end])
	t.next += have
	if _, err := io.ReadFull(readerFunc(t.read), p[have:]); err != nil {
		t.release(payload)
		return fmt.Errorf("payload of %d bytes: %w", n, err)
	}
	t.session.counters.writeRequests.Add(1)
	t.session.counters.writtenBytes.Add(int64(n))
	t.wrote()
	t.dispatch(job{kind: jobWrite, request: *req, payload: payload, reply: t.newBuffer(maxReply)})
	return nil
}

// refuse answers a request with an error.
func (t *transmission) refuse(req *nbd.Request, r refusal) {
	t.session.counters.failedRequests.Add(1)
	t.appendError(t.room(maxReply), req, r)
}

// deviceFailed turns a device's error into an answer, and logs what an operator
// should know.
func (t *transmission) deviceFailed(req *nbd.Request, err error) refusal {
	r := deviceRefusal(req, err)
	if n := t.session.deviceErrors.Add(1); n <= maxLoggedErrors {
		t.server.cfg.Logger.Warn("nbd: request failed", "export", t.session.Export(), "session", t.session.ID(),
			"command", req.Cmd, "offset", req.Offset, "length", req.Length, "error", err, "last_logged", n == maxLoggedErrors)
	}
	return r
}

// maxLoggedErrors is how many failed requests of a session are logged one by one.
const maxLoggedErrors = 10

// room returns the output with room for n more bytes, at most outputBytes.
func (t *transmission) room(n int) *buffer {
	if t.output != nil && t.output.room() < n {
		t.sendOutput()
	}
	if t.output == nil {
		t.output = t.newBuffer(outputBytes + headroom)
	}
	return t.output
}

func (t *transmission) sendOutput() {
	if b := t.output; b != nil {
		t.output = nil
		if len(b.data) == 0 {
			t.release(b)
			return
		}
		t.outbox.send(b)
	}
}

// newBuffer takes a buffer with room for n bytes on the connection's budget.
// If it must wait, all replies that are ready go out first.
func (t *transmission) newBuffer(n int) *buffer {
	size := bufferCap(bufferClass(n))
	if !t.budget.tryAcquire(size) {
		t.sendOutput()
		t.budget.acquire(size)
	}
	return newBuffer(n)
}

// release gives a buffer back that is not sent.
func (t *transmission) release(b *buffer) {
	t.budget.release(cap(b.data))
	b.recycle()
}

// workers are the goroutines of a connection that do what may wait.
type workers struct {
	jobs    chan job
	running int // workers; of the reading goroutine
	ended   sync.WaitGroup
	pending sync.WaitGroup // jobs
}

// wait returns when no job is under way.
func (w *workers) wait() { w.pending.Wait() }

// stop lets the workers end after their jobs and waits for that.
func (w *workers) stop() {
	close(w.jobs)
	w.ended.Wait()
}
