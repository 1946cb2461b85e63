package nbd_test

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"varve/internal/nbd"
)

// The layouts of headers, byte by byte as in the specification.
func TestHeaders(t *testing.T) {
	r := nbd.Request{Flags: nbd.CmdFlagFUA, Cmd: nbd.CmdWriteZeroes, Cookie: 0x0102030405060708, Offset: 0x1112131415161718, Length: 0x21222324}
	c := nbd.Chunk{Flags: nbd.ReplyFlagDone, Type: nbd.ReplyErrorOffset, Cookie: 0x0102030405060708, Offset: 0x1112131415161718, Length: 0x21222324}
	simple := make([]byte, nbd.SimpleReplySize)
	nbd.PutSimpleReply(simple, nbd.ENOSPC, r.Cookie)
	request, extendedRequest := make([]byte, nbd.RequestSize), make([]byte, nbd.ExtendedRequestSize)
	r.Put(request, false)
	r.Put(extendedRequest, true)
	chunk, extendedChunk := make([]byte, nbd.ChunkSize), make([]byte, nbd.ExtendedChunkSize)
	c.Put(chunk, false)
	c.Put(extendedChunk, true)
	for name, test := range map[string]struct {
		got  []byte
		want string
	}{
		"request":          {request, "25609513 0001 0006 0102030405060708 1112131415161718 21222324"},
		"extended request": {extendedRequest, "21e41c71 0001 0006 0102030405060708 1112131415161718 0000000021222324"},
		"simple reply":     {simple, "67446698 0000001c 0102030405060708"},
		"chunk":            {chunk, "668e33ef 0001 8002 0102030405060708 21222324"},
		"extended chunk":   {extendedChunk, "6e8a278c 0001 8002 0102030405060708 1112131415161718 0000000021222324"},
	} {
		if got := hex.EncodeToString(test.got); got != strings.ReplaceAll(test.want, " ", "") {
			t.Errorf("%s: %s", name, got)
		}
	}
	for _, isExtended := range []bool{false, true} {
		b := request
		if isExtended {
			b = extendedRequest
		}
		var back nbd.Request
		if err := back.Parse(b, isExtended); err != nil || back != r {
			t.Errorf("%+v, %v", back, err)
		}
		if err := back.Parse(append([]byte{0}, b...), isExtended); !errors.Is(err, nbd.ErrBadMagic) {
			t.Error(err)
		}
	}
}

func TestValidString(t *testing.T) {
	for s, want := range map[string]bool{
		"": true, "größe": true, "\uFFFD": true, strings.Repeat("x", 4096): true,
		strings.Repeat("x", 4097): false, "a\x00": false, "\xff": false,
	} {
		if nbd.ValidString(s) != want {
			t.Errorf("%.10q", s)
		}
	}
}
