package client_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/nbd"
	"varve/internal/nbd/client"
)

var be = binary.BigEndian

// answer lets a client talk to a server that says what it says whatever it hears, and
// then goes away.
func answer(t testing.TB, output []byte, use func(ctx context.Context, conn net.Conn)) {
	t.Helper()
	ours, theirs := net.Pipe()
	if err := ours.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		_, _ = io.Copy(io.Discard, ours)
	}()
	said := make(chan struct{})
	go func() {
		defer close(said)
		_, _ = ours.Write(output)
		_ = ours.Close()
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	use(ctx, theirs)
	_ = theirs.Close()
	<-said
	<-heard
}

func optionReply(opt nbd.Option, rep nbd.Rep, data string) []byte {
	b := be.AppendUint64(nil, nbd.OptionReplyMagic)
	b = be.AppendUint32(b, uint32(opt))
	b = be.AppendUint32(b, uint32(rep))
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

const greeting = "NBDMAGICIHAVEOPT\x00\x03"

// goReplies is the end of a handshake: an export of 1 MiB that can do everything.
func goReplies() []byte {
	info := be.AppendUint64([]byte{0, 0}, 1<<20)
	info = be.AppendUint16(info, 0x0ded)
	return append(optionReply(nbd.OptGo, nbd.RepInfo, string(info)), optionReply(nbd.OptGo, nbd.RepAck, "")...)
}

// handshakeOf is what a server says until the transmission phase of a form.
func handshakeOf(form byte) ([]byte, client.Options) {
	out := []byte(greeting)
	contexts := append(optionReply(nbd.OptSetMetaContext, nbd.RepMetaContext, "\x00\x00\x00\x01base:allocation"),
		optionReply(nbd.OptSetMetaContext, nbd.RepAck, "")...)
	switch form % 3 {
	case 0:
		return append(out, goReplies()...), client.Options{NoStructuredReplies: true}
	case 1:
		out = append(out, optionReply(nbd.OptStructuredReply, nbd.RepAck, "")...)
		return append(append(out, contexts...), goReplies()...), client.Options{NoExtendedHeaders: true}
	}
	out = append(out, optionReply(nbd.OptExtendedHeaders, nbd.RepAck, "")...)
	return append(append(out, contexts...), goReplies()...), client.Options{}
}

// Whatever a server says in the handshake, the client ends with an error or a
// sensible export.
func FuzzServerHandshake(f *testing.F) {
	for form := range byte(3) {
		out, _ := handshakeOf(form)
		f.Add(out)
	}
	f.Add(append([]byte(greeting), optionReply(nbd.OptExtendedHeaders, nbd.RepErrUnsup, "no")...))
	f.Add([]byte("NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53"))
	f.Fuzz(func(t *testing.T, output []byte) {
		answer(t, output, func(ctx context.Context, conn net.Conn) {
			c, err := client.New(ctx, conn, "x", client.Options{})
			if err != nil {
				return
			}
			if i := c.Info(); i.SizeBytes < 0 || i.MinBlock < 1 || i.MaxPayload < i.MinBlock || i.MaxPayload > nbd.MaxPayload {
				t.Errorf("%+v", i)
			}
			_ = c.Close()
		})
	})
}

// Whatever a server replies, every request of the client ends, and what succeeds is
// within what was asked.
func FuzzReplies(f *testing.F) {
	chunk := func(extended bool, c nbd.Chunk, payload string) []byte {
		n := nbd.ChunkSize
		if extended {
			n = nbd.ExtendedChunkSize
		}
		b := make([]byte, n)
		c.Length = uint64(len(payload))
		c.Put(b, extended)
		return append(b, payload...)
	}
	simple := make([]byte, nbd.SimpleReplySize)
	nbd.PutSimpleReply(simple, 0, 1)
	f.Add(byte(0), append(simple, make([]byte, 4096)...))
	for form, isExtended := range map[byte]bool{1: false, 2: true} {
		data := string(be.AppendUint64(nil, 4096)) + string(make([]byte, 1000))
		hole := string(be.AppendUint32(be.AppendUint64(nil, 5096), 3096))
		status := "\x00\x00\x00\x01\x00\x00\x10\x00\x00\x00\x00\x03"
		typ := nbd.ReplyBlockStatus
		if isExtended {
			status = "\x00\x00\x00\x01\x00\x00\x00\x01" + string(be.AppendUint64(be.AppendUint64(nil, 4096), 3))
			typ = nbd.ReplyBlockStatusExt
		}
		f.Add(form, append(chunk(isExtended, nbd.Chunk{Type: nbd.ReplyOffsetData, Cookie: 1}, data),
			chunk(isExtended, nbd.Chunk{Type: nbd.ReplyOffsetHole, Cookie: 1, Flags: 1}, hole)...))
		f.Add(form, chunk(isExtended, nbd.Chunk{Type: nbd.ReplyError, Cookie: 1, Flags: 1}, "\x00\x00\x00\x05\x00\x02no"))
		f.Add(form, chunk(isExtended, nbd.Chunk{Type: typ, Cookie: 2, Flags: 1}, status))
		f.Add(form, chunk(isExtended, nbd.Chunk{Type: nbd.ReplyNone, Cookie: 3, Flags: 1}, ""))
	}
	f.Fuzz(func(t *testing.T, form byte, replies []byte) {
		out, o := handshakeOf(form)
		answer(t, append(out, replies...), func(ctx context.Context, conn net.Conn) {
			c, err := client.New(ctx, conn, "x", o)
			if err != nil {
				return // the greeting was not heard in time
			}
			guard := make([]byte, 3*4096)
			_ = c.ReadAt(ctx, guard[4096:8192], 4096)
			for i, b := range guard {
				if b != 0 && (i < 4096 || i >= 8192) {
					t.Fatal("memory outside of the read was written")
				}
			}
			runs, err := c.Extents(ctx, 4096, 8192, 3)
			if err == nil {
				at := int64(4096)
				for _, r := range runs {
					if r.Offset != at || r.Length <= 0 {
						t.Fatalf("%+v", runs)
					}
					at += r.Length
				}
				if at > 4096+8192 || len(runs) > 3 {
					t.Fatalf("%+v", runs)
				}
			}
			c.Submit(ctx, []*block.Op{{Length: 512, Data: make([]byte, 512)}, {Kind: block.OpZero, Length: 4096}})
			_ = c.Flush(ctx)
			_ = c.Close()
		})
	})
}
