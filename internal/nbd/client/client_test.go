package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/nbd"
	"varve/internal/nbd/client"
	"varve/internal/nbd/nbdtest"
	"varve/internal/nbd/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// offers are the ways to connect to our server.
var offers = map[string]client.Options{
	"extended":   {},
	"structured": {NoExtendedHeaders: true},
	"simple":     {NoStructuredReplies: true},
}

func open(t testing.TB, uri string, o client.Options) *client.Client {
	t.Helper()
	c, err := client.Dial(nbdtest.Context(t), uri, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func serve(t testing.TB, size int64) (*nbdtest.Server, *memdisk.Disk) {
	t.Helper()
	d := nbdtest.Disk(t, size)
	e := nbdtest.Single(d)
	e.ByName["frozen"] = func() *server.Export { return &server.Export{Device: d.Open(), ReadOnly: true} }
	return nbdtest.Serve(t, server.Config{Exports: e}), d
}

func TestURIs(t *testing.T) {
	for uri, want := range map[string]string{
		"http://host/":                  "its scheme is none of",
		"nbd:///name":                   "it names no host",
		"nbd+unix:///name":              "it lacks ?socket=PATH",
		"nbd+unix://host/name?socket=s": "it names a host and a socket",
		"nbd://host/a%00b":              "export name",
		"nbd://host/%":                  "it does not parse",
	} {
		_, err := client.Dial(nbdtest.Context(t), uri, client.Options{})
		if !errors.Is(err, client.ErrURI) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

func TestInfo(t *testing.T) {
	s, _ := serve(t, 1<<20)
	for name, o := range offers {
		i := open(t, s.URI(""), o).Info()
		hasContexts := len(i.Contexts) == 1 && i.Contexts[0] == nbd.BaseAllocation
		if i.SizeBytes != 1<<20 || i.Description != "a disk in memory" || i.PreferredBlock != 4096 || i.MaxPayload != nbd.MaxPayload ||
			i.Extended != (name == "extended") || i.Structured != (name != "simple") || hasContexts != i.Structured {
			t.Errorf("%s: %+v", name, i)
		}
	}
	if _, err := client.Dial(nbdtest.Context(t), s.URI("nosuch"), client.Options{}); !errors.Is(err, nbd.RepErrUnknown) {
		t.Error(err)
	}
}

func TestLists(t *testing.T) {
	s, _ := serve(t, 1<<20)
	list, err := client.ListExports(nbdtest.Context(t), s.URI(""), client.Options{})
	if want := []client.ExportInfo{{Description: "a disk in memory"}, {Name: "frozen"}}; err != nil || !slices.Equal(list, want) {
		t.Error(list, err)
	}
	names, err := client.ListContexts(nbdtest.Context(t), s.URI("frozen"), client.Options{})
	if err != nil || !slices.Equal(names, []string{nbd.BaseAllocation}) {
		t.Error(names, err)
	}
	names, err = client.ListContexts(nbdtest.Context(t), s.URI(""), client.Options{}, "qemu:")
	if err != nil || len(names) != 0 {
		t.Error(names, err)
	}
}

// checkDevice performs random operations on a device and compares with a byte array.
func checkDevice(t *testing.T, d block.Device, rounds int) {
	t.Helper()
	ctx, size := nbdtest.Context(t), d.SizeBytes()
	model := make([]byte, size)
	if err := d.ReadAt(ctx, model, 0); err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range rounds {
		var ops []*block.Op
		for range r.IntN(8) + 1 {
			off := r.Int64N(size)
			op := &block.Op{Kind: block.OpKind(r.IntN(4)), Offset: off, Length: r.Int64N(min(size-off, 20_000)) + 1}
			if r.IntN(2) == 0 { // of whole blocks
				op.Offset = off / 4096 * 4096
				op.Length = min((op.Length+4095)/4096*4096, size-op.Offset)
			}
			from, to := op.Offset, op.Offset+op.Length
			switch op.Kind {
			case block.OpWrite:
				op.Data = bytes.Repeat([]byte{byte(r.Uint32())}, int(op.Length))
				copy(model[from:], op.Data)
			case block.OpDiscard:
				from = (from + 4095) / 4096 * 4096
				if to != size {
					to = to / 4096 * 4096
				}
				if from < to {
					clear(model[from:to])
				}
			default:
				clear(model[from:to])
			}
			ops = append(ops, op)
		}
		d.Submit(ctx, ops)
		for _, op := range ops {
			if op.Err != nil {
				t.Fatal(op.Err)
			}
		}
		off := r.Int64N(size)
		p := make([]byte, r.Int64N(size-off))
		if err := d.ReadAt(ctx, p, off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, model[off:off+int64(len(p))]) {
			t.Fatalf("read %d+%d differs", off, len(p))
		}
	}
	if err := d.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	checkExtents(t, d, model)
}

// checkExtents checks that extents are in order, merged and true.
func checkExtents(t *testing.T, d block.Device, model []byte) {
	t.Helper()
	ctx, size := nbdtest.Context(t), d.SizeBytes()
	var at int64
	runs, err := d.Extents(ctx, 0, size, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range runs {
		if e.Offset != at || e.Length <= 0 || i > 0 && e.Hole == runs[i-1].Hole && e.Zero == runs[i-1].Zero {
			t.Fatalf("run %d of %+v", i, runs)
		}
		if e.Zero && len(bytes.Trim(model[at:at+e.Length], "\x00")) > 0 {
			t.Fatalf("%+v is not zero", e)
		}
		at += e.Length
	}
	if at != size {
		t.Fatalf("runs end at %d", at)
	}
	for limit := 1; limit < min(4, len(runs)); limit++ {
		some, err := d.Extents(ctx, 5, size-5, limit)
		if err != nil || len(some) != limit || some[0].Offset != 5 {
			t.Fatalf("limit %d: %+v, %v", limit, some, err)
		}
	}
}

func TestClientIsADevice(t *testing.T) {
	for name, o := range offers {
		t.Run(name, func(t *testing.T) {
			s, _ := serve(t, 300*1024+512)
			checkDevice(t, open(t, s.URI(""), o), 200)
		})
	}
}

// Requests longer than one message can carry are cut.
func TestLongRequests(t *testing.T) {
	const size = 35 << 20
	s, d := serve(t, size)
	for name, o := range offers {
		t.Run(name, func(t *testing.T) {
			c, ctx := open(t, s.URI(""), o), nbdtest.Context(t)
			op := &block.Op{Offset: 3, Length: size - 3, Data: bytes.Repeat([]byte("0123456789"), size/10+1)[3:size]}
			c.Submit(ctx, []*block.Op{op})
			p := make([]byte, size-3)
			if err := errors.Join(op.Err, c.ReadAt(ctx, p, 3)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p, op.Data) {
				t.Fatal("content differs")
			}
			op = &block.Op{Kind: block.OpZero, Offset: 0, Length: size}
			c.Submit(ctx, []*block.Op{op})
			runs, err := d.Extents(ctx, 0, size, 2)
			if op.Err != nil || err != nil || len(runs) != 1 || !runs[0].Hole {
				t.Fatal(op.Err, err, runs)
			}
		})
	}
}

func TestHugeExport(t *testing.T) {
	s, _ := serve(t, block.MaxDeviceBytes)
	for name, o := range offers {
		if name == "simple" {
			continue
		}
		c, ctx := open(t, s.URI(""), o), nbdtest.Context(t)
		op := &block.Op{Offset: block.MaxDeviceBytes - 512, Length: 512, Data: bytes.Repeat([]byte{1}, 512)}
		c.Submit(ctx, []*block.Op{op})
		runs, err := c.Extents(ctx, block.MaxDeviceBytes-10<<30, 10<<30, 5)
		if op.Err != nil || err != nil || len(runs) != 2 || runs[0].Length != 10<<30-4096 {
			t.Fatal(name, op.Err, err, runs)
		}
	}
}

func TestErrors(t *testing.T) {
	s, _ := serve(t, 1<<20)
	c, frozen, ctx := open(t, s.URI(""), client.Options{}), open(t, s.URI("frozen"), client.Options{}), nbdtest.Context(t)
	beyond := &block.Op{Offset: 1<<20 - 1, Length: 2, Data: make([]byte, 2)}
	refused := &block.Op{Offset: 0, Length: 2, Data: make([]byte, 2)}
	wrong := &block.Op{Offset: 0, Length: 3, Data: make([]byte, 2)}
	good := &block.Op{Offset: 0, Length: 2, Data: make([]byte, 2)}
	c.Submit(ctx, []*block.Op{beyond, wrong, good})
	frozen.Submit(ctx, []*block.Op{refused})
	_, noExtents := c.Extents(ctx, 1<<20, 1, 1)
	_, noContext := c.BlockStatus(ctx, "x:y", 0, 1, 1)
	for i, test := range []struct{ err, want error }{
		{beyond.Err, block.ErrOutOfRange},
		{refused.Err, block.ErrReadOnly},
		{c.ReadAt(ctx, make([]byte, 2), 1<<20-1), block.ErrOutOfRange},
		{c.Trim(ctx, -1, 1), block.ErrOutOfRange},
		{noExtents, block.ErrOutOfRange},
		{noContext, client.ErrUnknownContext},
	} {
		if !errors.Is(test.err, test.want) {
			t.Errorf("%d: %v is not %v", i, test.err, test.want)
		}
	}
	if wrong.Err == nil || good.Err != nil {
		t.Error(wrong.Err, good.Err)
	}
	if err := errors.Join(c.Trim(ctx, 0, 1<<20), c.Cache(ctx, 0, 1<<20), frozen.Trim(ctx, 0, 512)); err != nil {
		t.Error(err)
	}
}

// Ops that overlap are performed in order, however many are under way.
func TestOverlappingOps(t *testing.T) {
	s, _ := serve(t, 1<<20)
	c, ctx := open(t, s.URI(""), client.Options{}), nbdtest.Context(t)
	var ops []*block.Op
	for i := range 300 {
		ops = append(ops, &block.Op{Offset: int64(i % 3 * 1000), Length: 100_000, Data: bytes.Repeat([]byte{byte(i)}, 100_000)})
	}
	c.Submit(ctx, ops)
	p := make([]byte, 102_000)
	if err := c.ReadAt(ctx, p, 0); err != nil {
		t.Fatal(err)
	}
	for i, want := range map[int]byte{500: 297 % 256, 1500: 298 % 256, 50_000: 299 % 256, 101_500: 299 % 256} {
		if p[i] != want {
			t.Errorf("byte %d is %d, not %d", i, p[i], want)
		}
	}
}

// Many callers share a connection, each gets its own answers.
func TestConcurrentCallers(t *testing.T) {
	s, _ := serve(t, 16<<20)
	c, ctx := open(t, s.URI(""), client.Options{}), nbdtest.Context(t)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			area := int64(g) << 20
			for i := range 50 {
				data := bytes.Repeat([]byte{byte(g*50 + i)}, 1+i*997)
				op := &block.Op{Offset: area + int64(i), Length: int64(len(data)), Data: data}
				c.Submit(ctx, []*block.Op{op})
				p := make([]byte, len(data))
				if err := errors.Join(op.Err, c.ReadAt(ctx, p, op.Offset)); err != nil {
					t.Error(err)
				}
				if !bytes.Equal(p, data) {
					t.Errorf("caller %d read what is not its own", g)
				}
			}
		})
	}
	wg.Wait()
}

// stuck is a device whose reads say that they have begun and end with their context
// or gate only.
type stuck struct {
	block.Device
	begun, gate chan struct{}
}

func (s stuck) ReadAt(ctx context.Context, p []byte, off int64) error {
	s.begun <- struct{}{}
	select {
	case <-s.gate:
		return s.Device.ReadAt(ctx, p, off)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A caller whose context ends leaves at once; its answer, which comes later, goes nowhere,
// and the connection goes on.
func TestCancel(t *testing.T) {
	d := nbdtest.Disk(t, 1<<20)
	d.Submit(context.Background(), []*block.Op{{Length: 8192, Data: bytes.Repeat([]byte{7}, 8192)}})
	dev := stuck{d, make(chan struct{}, 100), make(chan struct{})}
	s := nbdtest.Serve(t, server.Config{Exports: &nbdtest.Exports{ByName: map[string]func() *server.Export{
		"": func() *server.Export { return &server.Export{Device: dev} },
	}}})
	c := open(t, s.URI(""), client.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	p, result := make([]byte, 4096), make(chan error)
	go func() { result <- c.ReadAt(ctx, p, 0) }()
	<-dev.begun
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(dev.gate)
	q := make([]byte, 8192)
	if err := c.ReadAt(nbdtest.Context(t), q, 0); err != nil || q[8191] != 7 {
		t.Fatal(err)
	}
	if !bytes.Equal(p, make([]byte, 4096)) {
		t.Fatal("memory was written after its caller had gone")
	}
	if err := c.ReadAt(ctx, p, 0); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// What is under way when the server goes fails; so does all that follows.
func TestServerGoesAway(t *testing.T) {
	dev := stuck{nbdtest.Disk(t, 1<<20), make(chan struct{}, 100), make(chan struct{})}
	s := nbdtest.Serve(t, server.Config{Exports: &nbdtest.Exports{ByName: map[string]func() *server.Export{
		"": func() *server.Export { return &server.Export{Device: dev} },
	}}})
	c := open(t, s.URI(""), client.Options{})
	result := make(chan error)
	for range 3 {
		go func() { result <- c.ReadAt(nbdtest.Context(t), make([]byte, 512), 0) }()
		<-dev.begun
	}
	s.Sessions()[0].Disconnect("test")
	for range 3 {
		if err := <-result; !errors.Is(err, client.ErrDisconnected) {
			t.Error(err)
		}
	}
	if err := c.Flush(nbdtest.Context(t)); !errors.Is(err, client.ErrDisconnected) {
		t.Error(err)
	}
}

// A request that is sent just when the connection ends says so, whoever notices first: who sends, or who receives.
func TestServerGoesAwayWhileSending(t *testing.T) {
	s := nbdtest.Serve(t, server.Config{Exports: nbdtest.Single(nbdtest.Disk(t, 1<<20))})
	for range 50 {
		c := open(t, s.URI(""), client.Options{})
		for len(s.Sessions()) == 0 {
			runtime.Gosched()
		}
		go s.Sessions()[0].Disconnect("test")
		for {
			if err := c.ReadAt(nbdtest.Context(t), make([]byte, 512), 0); errors.Is(err, client.ErrDisconnected) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		for len(s.Sessions()) > 0 {
			runtime.Gosched()
		}
	}
}

// Close frees who waits.
func TestCloseFreesCallers(t *testing.T) {
	dev := stuck{nbdtest.Disk(t, 1<<20), make(chan struct{}, 100), make(chan struct{})}
	s := nbdtest.Serve(t, server.Config{Exports: &nbdtest.Exports{ByName: map[string]func() *server.Export{
		"": func() *server.Export { return &server.Export{Device: dev} },
	}}})
	c := open(t, s.URI(""), client.Options{})
	result := make(chan error)
	go func() { result <- c.ReadAt(nbdtest.Context(t), make([]byte, 512), 0) }()
	<-dev.begun
	close(dev.gate) // the server ends after its requests
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil && !errors.Is(err, block.ErrClosed) {
		t.Fatal(err)
	}
}

type evens struct{}

func (evens) Names(context.Context) ([]string, error) { return []string{"qemu:dirty-bitmap:b"}, nil }
func (evens) Has(_ context.Context, name string) bool { return name == "qemu:dirty-bitmap:b" }
func (evens) Open(context.Context, string) (server.MetaContext, error) {
	return evens{}, nil
}
func (evens) Status(_ context.Context, off, length int64, limit int) ([]server.Status, error) {
	var list []server.Status
	for end := off + length; off < end && len(list) < limit; {
		n := min(end-off, 1024-off%1024)
		list = append(list, server.Status{Length: n, Flags: uint32(1 - off/1024%2)})
		off += n
	}
	return list, nil
}

func TestOtherContexts(t *testing.T) {
	d := nbdtest.Disk(t, 64<<20)
	s := nbdtest.Serve(t, server.Config{Exports: &nbdtest.Exports{ByName: map[string]func() *server.Export{
		"": func() *server.Export { return &server.Export{Device: d.Open(), Contexts: evens{}} },
	}}})
	c := open(t, s.URI(""), client.Options{Contexts: []string{"qemu:dirty-bitmap:b", "qemu:dirty-bitmap:nosuch"}})
	if got := fmt.Sprint(c.Info().Contexts); got != "[base:allocation qemu:dirty-bitmap:b]" {
		t.Fatal(got)
	}
	// More runs than one reply of our server holds.
	runs, err := c.BlockStatus(nbdtest.Context(t), "qemu:dirty-bitmap:b", 512, 32<<20, 1<<20)
	if err != nil || len(runs) != 32<<10+1 {
		t.Fatal(len(runs), err)
	}
	for i, r := range runs[1 : len(runs)-1] {
		if r.Length != 1024 || r.Flags != uint64(i%2) {
			t.Fatal(i, r)
		}
	}
}
