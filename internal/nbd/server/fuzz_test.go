package server_test

import (
	"io"
	"net"
	"testing"
	"time"

	"varve/internal/nbd"
	"varve/internal/nbd/nbdtest"
	"varve/internal/nbd/server"
)

// converse lets a server answer what a client sends without waiting, and returns all
// of its output. The server must come to an end by itself then.
func converse(t testing.TB, input []byte) []byte {
	t.Helper()
	e := twoExports(nbdtest.Disk(t, 1<<20))
	s, err := server.New(server.Config{Exports: e})
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	if err := ours.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.ServeConn(theirs)
	}()
	output := make(chan []byte)
	sent := make(chan struct{})
	go func() {
		all, _ := io.ReadAll(ours)
		output <- all
	}()
	go func() {
		defer close(sent)
		_, _ = ours.Write(input)
		// As if the client had gone; what is under way ends.
		_ = ours.Close()
	}()
	all := <-output
	<-sent
	<-served
	if n := e.StillOpen(); n != 0 {
		t.Fatalf("%d devices are still open", n)
	}
	return all
}

func optionBytes(opt nbd.Option, data []byte) []byte {
	b := be.AppendUint64(nil, nbd.OptionMagic)
	b = be.AppendUint32(b, uint32(opt))
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func join(parts ...[]byte) []byte {
	var all []byte
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// Whatever a client sends in the handshake, each option reply is well formed, and
// nothing is left behind.
func FuzzHandshake(f *testing.F) {
	flags := []byte{0, 0, 0, 3}
	f.Add(join(flags, optionBytes(nbd.OptList, nil), optionBytes(nbd.OptAbort, nil)))
	f.Add(join(flags, optionBytes(nbd.OptStructuredReply, nil), optionBytes(nbd.OptSetMetaContext, metaData("big", "base:allocation", "x-test:odd")),
		optionBytes(nbd.OptInfo, infoData("", nbd.InfoName)), optionBytes(nbd.OptGo, infoData("big", nbd.InfoBlockSize))))
	f.Add(join(flags, optionBytes(nbd.OptExtendedHeaders, nil), optionBytes(nbd.OptListMetaContext, metaData("big"))))
	f.Add(join(flags, optionBytes(nbd.OptStartTLS, nil), optionBytes(99, []byte("abc"))))
	f.Add(join([]byte{0, 0, 0, 0}, optionBytes(nbd.OptExportName, []byte("frozen"))))
	f.Fuzz(func(t *testing.T, input []byte) {
		out := converse(t, input)
		if len(out) < 18 {
			return
		}
		for out = out[18:]; len(out) >= 20 && be.Uint64(out) == nbd.OptionReplyMagic; {
			n := uint64(be.Uint32(out[16:]))
			if n > 64<<10 {
				t.Fatalf("option reply of %d bytes", n)
			}
			out = out[min(uint64(len(out)), 20+n):]
		}
	})
}

// Whatever a client sends in the transmission phase, in any form, each reply is well
// formed, to a request that was made, and nothing is left behind.
func FuzzTransmission(f *testing.F) {
	for form := range byte(3) {
		c := transmission{form: formOf(form)}
		f.Add(form, join(
			c.encode(nbd.Request{Cmd: nbd.CmdWrite, Flags: nbd.CmdFlagFUA, Length: 20, Cookie: 1}, make([]byte, 20)),
			c.encode(nbd.Request{Cmd: nbd.CmdRead, Offset: 5, Length: 4096, Cookie: 2}, nil),
			c.encode(nbd.Request{Cmd: nbd.CmdRead, Flags: nbd.CmdFlagDF, Length: 200_000, Cookie: 3}, nil),
			c.encode(nbd.Request{Cmd: nbd.CmdWriteZeroes, Flags: nbd.CmdFlagNoHole, Length: 1 << 20, Cookie: 4}, nil),
			c.encode(nbd.Request{Cmd: nbd.CmdTrim, Length: 4096, Cookie: 5}, nil),
			c.encode(nbd.Request{Cmd: nbd.CmdBlockStatus, Length: 4096, Cookie: 6}, nil),
			c.encode(nbd.Request{Cmd: nbd.CmdCache, Length: 4096, Cookie: 7}, nil),
			c.encode(nbd.Request{Cmd: nbd.CmdFlush, Cookie: 8}, nil),
			c.encode(nbd.Request{Cmd: nbd.CmdDisc}, nil)))
		f.Add(form, c.encode(nbd.Request{Cmd: nbd.CmdWrite, Length: 100_000}, make([]byte, 100)))
		f.Add(form, c.encode(nbd.Request{Cmd: 99, Length: 1 << 31}, nil))
	}
	f.Fuzz(func(t *testing.T, which byte, input []byte) {
		form := formOf(which)
		handshake := []byte{0, 0, 0, 3}
		switch form {
		case structured:
			handshake = join(handshake, optionBytes(nbd.OptStructuredReply, nil))
		case extended:
			handshake = join(handshake, optionBytes(nbd.OptExtendedHeaders, nil))
		}
		if form != simple {
			handshake = join(handshake, optionBytes(nbd.OptSetMetaContext, metaData("big", nbd.BaseAllocation, "x-test:odd")))
		}
		handshake = join(handshake, optionBytes(nbd.OptGo, infoData("big")))
		out := converse(t, join(handshake, input))
		for out = out[min(18, len(out)):]; len(out) >= 20 && be.Uint64(out) == nbd.OptionReplyMagic; {
			out = out[min(len(out), 20+int(be.Uint32(out[16:]))):]
		}
		if form == simple {
			return // without the requests it cannot be told where data ends
		}
		checkReplies(t, out, form == extended)
	})
}

func formOf(b byte) form { return form(b % 3) }

// checkReplies checks that out is a series of replies, the last maybe cut short.
func checkReplies(t *testing.T, out []byte, isExtended bool) {
	t.Helper()
	for len(out) >= 4 {
		head, magic := nbd.ChunkSize, be.Uint32(out)
		switch {
		case magic == nbd.SimpleReplyMagic && !isExtended:
			out = out[min(len(out), nbd.SimpleReplySize):]
			continue
		case magic == nbd.StructuredReplyMagic && !isExtended:
		case magic == nbd.ExtendedReplyMagic && isExtended:
			head = nbd.ExtendedChunkSize
		default:
			t.Fatalf("no reply: %x", out[:4])
		}
		if len(out) < head {
			return
		}
		var c nbd.Chunk
		c.Parse(out, isExtended)
		if c.Length > nbd.MaxPayload+8 {
			t.Fatalf("chunk of %d bytes", c.Length)
		}
		if c.Type == nbd.ReplyNone && (c.Length != 0 || c.Flags&nbd.ReplyFlagDone == 0) {
			t.Fatalf("%+v", c)
		}
		out = out[min(uint64(len(out)), uint64(head)+c.Length):]
	}
}
