package server_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"varve/internal/block/memdisk"
	"varve/internal/nbd"
	"varve/internal/nbd/nbdtest"
	"varve/internal/nbd/server"
)

// twoExports offers "", "big" (with a description and two contexts of its own) and "frozen", read-only.
func twoExports(d *memdisk.Disk) *nbdtest.Exports {
	e := nbdtest.Single(d)
	e.ByName["big"] = func() *server.Export {
		return &server.Export{Device: d.Open(), Name: "BIG", Description: "a big one", Contexts: stripes{"x-test:even", "x-test:odd"}}
	}
	e.ByName["frozen"] = func() *server.Export { return &server.Export{Device: d.Open(), ReadOnly: true} }
	return e
}

func serveTwo(t testing.TB) *nbdtest.Server {
	t.Helper()
	return nbdtest.Serve(t, server.Config{Exports: twoExports(nbdtest.Disk(t, 1<<20))})
}

func TestGreeting(t *testing.T) {
	c := dial(t, serveTwo(t))
	if got := c.read(18); string(got) != "NBDMAGICIHAVEOPT\x00\x03" {
		t.Fatalf("%q", got)
	}
}

// What breaks a rule in a way that no reply exists for ends the connection.
func TestViolationsCloseTheConnection(t *testing.T) {
	s := serveTwo(t)
	option := func(magic uint64, opt nbd.Option, data string) []byte {
		b := be.AppendUint64(nil, magic)
		b = be.AppendUint32(b, uint32(opt))
		b = be.AppendUint32(b, uint32(len(data)))
		return append(b, data...)
	}
	for name, bytes := range map[string]string{
		"unknown client flag":           "\x00\x00\x00\x07",
		"flags of a web browser":        "GET / HTTP/1.0\r\n\r\n",
		"option without magic":          "\x00\x00\x00\x03" + string(option(1, nbd.OptList, "")),
		"option without fixed newstyle": "\x00\x00\x00\x00" + string(option(nbd.OptionMagic, nbd.OptList, "")),
		"unknown export by name":        "\x00\x00\x00\x03" + string(option(nbd.OptionMagic, nbd.OptExportName, "nosuch")),
		"export name too long":          "\x00\x00\x00\x03" + string(option(nbd.OptionMagic, nbd.OptExportName, strings.Repeat("x", 4097))),
		"export name with NUL":          "\x00\x00\x00\x03" + string(option(nbd.OptionMagic, nbd.OptExportName, "a\x00")),
		"absurd option length":          "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\xff\xff\xff\xff",
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, s)
			c.read(18)
			c.write([]byte(bytes))
			c.expectClosed()
		})
	}
}

func TestOptionErrors(t *testing.T) {
	s := serveTwo(t)
	long := bytes.Repeat([]byte{'x'}, 5000)
	for _, test := range []struct {
		name   string
		before []nbd.Option
		opt    nbd.Option
		data   []byte
		want   nbd.Rep
	}{
		{"unknown option", nil, 77, []byte("some data"), nbd.RepErrUnsup},
		{"withdrawn option", nil, 4, nil, nbd.RepErrUnsup},
		{"list with data", nil, nbd.OptList, []byte{0}, nbd.RepErrInvalid},
		{"TLS not offered", nil, nbd.OptStartTLS, nil, nbd.RepErrPolicy},
		{"go without data", nil, nbd.OptGo, nil, nbd.RepErrInvalid},
		{"go, name beyond data", nil, nbd.OptGo, []byte("\x00\x00\x00\x09big\x00\x00"), nbd.RepErrInvalid},
		{"go, infos beyond data", nil, nbd.OptGo, []byte("\x00\x00\x00\x00\x00\x02\x00\x03"), nbd.RepErrInvalid},
		{"go, data beyond infos", nil, nbd.OptGo, append(infoData(""), 0), nbd.RepErrInvalid},
		{"go, name too long", nil, nbd.OptGo, infoData(string(long)), nbd.RepErrInvalid},
		{"go, name not UTF-8", nil, nbd.OptGo, infoData("\xff"), nbd.RepErrInvalid},
		{"go, unknown export", nil, nbd.OptGo, infoData("nosuch"), nbd.RepErrUnknown},
		{"info, unknown export", nil, nbd.OptInfo, infoData("nosuch"), nbd.RepErrUnknown},
		{"oversized option", nil, nbd.OptInfo, make([]byte, 100_000), nbd.RepErrTooBig},
		{"structured reply with data", nil, nbd.OptStructuredReply, []byte{1}, nbd.RepErrInvalid},
		{"extended headers with data", nil, nbd.OptExtendedHeaders, []byte{1}, nbd.RepErrInvalid},
		{"extended headers twice", []nbd.Option{nbd.OptExtendedHeaders}, nbd.OptExtendedHeaders, nil, nbd.RepErrInvalid},
		{"structured after extended", []nbd.Option{nbd.OptExtendedHeaders}, nbd.OptStructuredReply, nil, nbd.RepErrExtHeaderRequired},
		{"contexts without structured", nil, nbd.OptSetMetaContext, metaData("", nbd.BaseAllocation), nbd.RepErrInvalid},
		{"contexts of unknown export", []nbd.Option{nbd.OptStructuredReply}, nbd.OptSetMetaContext, metaData("nosuch", nbd.BaseAllocation), nbd.RepErrUnknown},
		{"query without namespace", []nbd.Option{nbd.OptStructuredReply}, nbd.OptListMetaContext, metaData("", "allocation"), nbd.RepErrInvalid},
		{"query beyond data", []nbd.Option{nbd.OptStructuredReply}, nbd.OptSetMetaContext, metaData("", "base:allocation")[:15], nbd.RepErrInvalid},
		{"too many queries", []nbd.Option{nbd.OptStructuredReply}, nbd.OptSetMetaContext, be.AppendUint32(make([]byte, 4), 1<<30), nbd.RepErrTooBig},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := greeted(t, s)
			for _, opt := range test.before {
				c.mustOption(opt, nil)
			}
			if got := c.final(test.opt, test.data); got != test.want {
				t.Fatalf("got %v, want %v", got, test.want)
			}
			// The connection goes on as if nothing had been.
			c.mustOption(nbd.OptGo, infoData(""))
		})
	}
}

func TestList(t *testing.T) {
	c := greeted(t, serveTwo(t))
	var got []string
	for _, r := range c.option(nbd.OptList, nil) {
		if r.rep == nbd.RepServer {
			n := be.Uint32(r.data)
			got = append(got, string(r.data[4:4+n])+"="+string(r.data[4+n:]))
		}
	}
	if s := strings.Join(got, ","); s != "=a disk in memory,big=a big one,frozen=" {
		t.Fatal(s)
	}
}

func TestAbort(t *testing.T) {
	c := greeted(t, serveTwo(t))
	if got := c.final(nbd.OptAbort, []byte("ignored")); got != nbd.RepAck {
		t.Fatal(got)
	}
	c.expectClosed()
}

func TestExportName(t *testing.T) {
	for name, test := range map[string]struct {
		flags uint32
		tail  int
	}{"with zeroes": {1, 124}, "without": {3, 0}, "not even fixed newstyle": {0, 124}} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, serveTwo(t))
			c.read(18)
			c.write(be.AppendUint32(nil, test.flags))
			c.sendOption(nbd.OptExportName, []byte("frozen"))
			b := c.read(10 + test.tail)
			flags := nbd.TransmissionFlags(be.Uint16(b[8:]))
			if be.Uint64(b) != 1<<20 || flags&nbd.FlagReadOnly == 0 || flags&nbd.FlagSendDF != 0 {
				t.Fatalf("%x", b)
			}
			x := transmission{c, simple}
			if got := x.readBack(512, 100, 0); len(got) != 100 {
				t.Fatal("no data")
			}
		})
	}
}

func TestExportNameClosesAfterExtendedHeaders(t *testing.T) {
	c := greeted(t, serveTwo(t))
	c.mustOption(nbd.OptExtendedHeaders, nil)
	c.sendOption(nbd.OptExportName, nil)
	c.expectClosed()
}

func TestInfo(t *testing.T) {
	c := greeted(t, serveTwo(t))
	c.mustOption(nbd.OptStructuredReply, nil)
	got := make(map[nbd.Info]string)
	for _, opt := range []nbd.Option{nbd.OptInfo, nbd.OptGo} {
		for _, r := range c.option(opt, infoData("big", nbd.InfoBlockSize, nbd.InfoName, nbd.InfoDescription, 99)) {
			if r.rep == nbd.RepInfo {
				got[nbd.Info(be.Uint16(r.data))] = string(r.data[2:])
			}
		}
		flags := nbd.FlagHasFlags | nbd.FlagSendFlush | nbd.FlagSendFUA | nbd.FlagSendTrim | nbd.FlagSendWriteZeroes |
			nbd.FlagSendDF | nbd.FlagCanMultiConn | nbd.FlagSendCache | nbd.FlagSendFastZero
		want := map[nbd.Info]string{
			nbd.InfoExport:      string(be.AppendUint16(be.AppendUint64(nil, 1<<20), uint16(flags))),
			nbd.InfoName:        "BIG",
			nbd.InfoDescription: "a big one",
			nbd.InfoBlockSize:   "\x00\x00\x00\x01\x00\x00\x10\x00\x02\x00\x00\x00",
		}
		if len(got) != len(want) {
			t.Fatalf("option %d: %v", opt, got)
		}
		for k, v := range want {
			if got[k] != v {
				t.Errorf("option %d: info %d is %x instead of %x", opt, k, got[k], v)
			}
		}
		clear(got)
	}
}

func contextNames(list []optionReply) string {
	var names []string
	for _, r := range list {
		if r.rep == nbd.RepMetaContext {
			names = append(names, string(r.data[4:]))
		}
	}
	return strings.Join(names, " ")
}

func TestMetaContexts(t *testing.T) {
	s := serveTwo(t)
	for _, test := range []struct {
		opt     nbd.Option
		export  string
		queries []string
		want    string
	}{
		{nbd.OptListMetaContext, "", nil, "base:allocation"},
		{nbd.OptListMetaContext, "big", nil, "base:allocation x-test:even x-test:odd"},
		{nbd.OptListMetaContext, "big", []string{"base:"}, "base:allocation"},
		{nbd.OptListMetaContext, "big", []string{"x-test:", "y:"}, "x-test:even x-test:odd"},
		{nbd.OptListMetaContext, "big", []string{"x-test:odd", "base:nosuch"}, "x-test:odd"},
		{nbd.OptListMetaContext, "big", []string{"nosuch:"}, ""},
		{nbd.OptListMetaContext, "big", []string{"x-test:unlisted", "x-test:"}, "x-test:even x-test:odd x-test:unlisted"},
		{nbd.OptListMetaContext, "", []string{"x-test:unlisted"}, ""},
		{nbd.OptSetMetaContext, "big", []string{"x-test:unlisted"}, "x-test:unlisted"},
		{nbd.OptSetMetaContext, "big", nil, ""},
		{nbd.OptSetMetaContext, "big", []string{"base:"}, ""},
		{nbd.OptSetMetaContext, "big", []string{"x-test:"}, ""},
		{nbd.OptSetMetaContext, "big", []string{"x-test:odd", "base:allocation", "x-test:odd", "x-test:none"}, "x-test:odd base:allocation"},
	} {
		c := greeted(t, s)
		c.mustOption(nbd.OptStructuredReply, nil)
		list := c.option(test.opt, metaData(test.export, test.queries...))
		if got := contextNames(list); got != test.want || list[len(list)-1].rep != nbd.RepAck {
			t.Errorf("option %d %q: %q, want %q", test.opt, test.queries, got, test.want)
		}
		seen := make(map[uint32]bool)
		for _, r := range list[:len(list)-1] {
			id := be.Uint32(r.data)
			if test.opt == nbd.OptSetMetaContext && (id == 0 || seen[id]) {
				t.Errorf("context id %d is not unique", id)
			}
			seen[id] = true
		}
	}
}

// Contexts hold for the export they were selected for, until they are selected again.
func TestMetaContextsBelongToTheirExport(t *testing.T) {
	s := serveTwo(t)
	for name, test := range map[string]struct {
		between func(c *raw)
		export  string
		want    nbd.Errno
	}{
		"same export":                {func(*raw) {}, "", 0},
		"another export":             {func(*raw) {}, "big", nbd.EINVAL},
		"question about another":     {func(c *raw) { c.mustOption(nbd.OptInfo, infoData("big")) }, "", 0},
		"question about unknown one": {func(c *raw) { _ = c.final(nbd.OptInfo, infoData("nosuch")) }, "", 0},
		"none selected at last":      {func(c *raw) { c.mustOption(nbd.OptSetMetaContext, metaData("")) }, "", nbd.EINVAL},
		"failed at last":             {func(c *raw) { _ = c.final(nbd.OptSetMetaContext, metaData("", "bad")) }, "", nbd.EINVAL},
		"other export at last": {func(c *raw) {
			c.mustOption(nbd.OptSetMetaContext, metaData("big", nbd.BaseAllocation))
		}, "", nbd.EINVAL},
	} {
		t.Run(name, func(t *testing.T) {
			c := greeted(t, s)
			c.mustOption(nbd.OptStructuredReply, nil)
			c.mustOption(nbd.OptSetMetaContext, metaData("", nbd.BaseAllocation))
			test.between(c)
			c.mustOption(nbd.OptGo, infoData(test.export))
			x := transmission{c, structured}
			if got := x.errno(nbd.Request{Cmd: nbd.CmdBlockStatus, Length: 512}, nil); got != test.want {
				t.Fatalf("block status: %v, want %v", got, test.want)
			}
		})
	}
}

func TestHandshakeTimeout(t *testing.T) {
	s := nbdtest.Serve(t, server.Config{Exports: nbdtest.Single(nbdtest.Disk(t, 4096)), HandshakeTimeout: 50 * time.Millisecond})
	for name, sent := range map[string]string{"silent": "", "in the middle": "\x00\x00\x00\x03IHAVE"} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, s)
			c.read(18)
			c.write([]byte(sent))
			c.expectClosed()
		})
	}
	// Whoever is through stays.
	c := enter(t, s, simple)
	stuck := dial(t, s)
	stuck.read(18)
	stuck.expectClosed()
	if got := c.errno(nbd.Request{Cmd: nbd.CmdFlush}, nil); got != 0 {
		t.Fatal(got)
	}
}
