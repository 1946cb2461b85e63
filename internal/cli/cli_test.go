package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"varve/internal/block"
	"varve/internal/cli"
	"varve/internal/contract"
	"varve/internal/daemon"
	"varve/internal/nbd/client"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"varve": func() { os.Exit(cli.Main(os.Args[1:], "v0-test")) },
	})
}

// TestScripts runs testdata/*.txtar: the command line as its users see it,
// against a real daemon.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("VARVE_DATA", filepath.Join(e.WorkDir, "d"))
			// A process under the race detector lingers for a second when it ends; there are many here.
			e.Setenv("GORACE", "atexit_sleep_ms=0")
			e.Setenv("RECIPIENT", "age1g7y2ck4qv9aym32pr4x9fqln2gryhqajkdr6uxuscaluvmchq3ks5knrzv")
			e.Values[running{}] = new(process)
			e.Values[held{}] = map[string]*client.Client{}
			// What begins as a qcow2 image and is none: an archive of text cannot hold the magic number.
			return os.WriteFile(filepath.Join(e.WorkDir, "forged.qcow2"), []byte("QFI\xfb\x00\x00\x00\x03 and no more of a header"), 0o600)
		},
		Cmds: commands,
	})
}

// commands are those of scripts.
var commands = map[string]func(*testscript.TestScript, bool, []string){
	"serve": serve, "terminate": terminate, "exits": exits, "field": field,
	"write": write, "holds": holds, "hold": hold, "release": release,
	"fields": fields, "mode": mode, "rot": rot, "wait-job": waitJob, "job-refused": jobRefused, "job-ends": jobEnds,
	"job-of-kind": jobOfKind, "delete-snapshots": deleteSnapshots, "lock": lock,
	"disk": makeDisk, "dirt": dirt, "id": keepID, "part": makePart, "no-parts": noParts, "writer": writer, "cmp-bytes": cmpBytes,
	"remove-key": removeKey, "newer": newer, "spoil-packs": spoilPacks, "flip": flip, "smaller-than": smallerThan,
}

const patience = time.Minute

// running is the key of the script's daemon, held that of its open NBD connections.
type (
	running struct{}
	held    struct{}
)

type process struct {
	cmd    *exec.Cmd
	stderr *bytes.Buffer
}

// serve [FLAGS] starts a daemon and returns when it tells systemd that it is ready.
func serve(ts *testscript.TestScript, neg bool, args []string) {
	notify := ts.MkAbs("notify.sock")
	os.Remove(notify)
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	ts.Check(err)
	defer ready.Close()

	// The test binary is on the script's PATH under the command's name.
	program := filepath.Join(strings.Split(ts.Getenv("PATH"), string(os.PathListSeparator))[0], "varve")
	p := &process{cmd: exec.Command(program, append([]string{"serve"}, args...)...), stderr: new(bytes.Buffer)}
	p.cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), "VARVE_DATA=" + ts.Getenv("VARVE_DATA"), "NOTIFY_SOCKET=" + notify, "GORACE=atexit_sleep_ms=0"}
	p.cmd.Dir = ts.MkAbs(".")
	p.cmd.Stderr = p.stderr
	ts.Check(p.cmd.Start())
	*ts.Value(running{}).(*process) = *p
	ts.Defer(func() {
		if p.cmd.ProcessState == nil {
			p.cmd.Process.Kill()
			p.cmd.Wait()
			ts.Logf("daemon:\n%s", p.stderr)
		}
	})
	ts.Check(ready.SetReadDeadline(time.Now().Add(patience)))
	state := make([]byte, 100)
	n, err := ready.Read(state)
	ts.Check(err)
	if string(state[:n]) != "READY=1" {
		ts.Fatalf("the daemon told systemd %q", state[:n])
	}
}

// terminate [SIGNAL] ends the daemon, with SIGTERM if no signal is named, and wants a clean end of anything but KILL.
func terminate(ts *testscript.TestScript, neg bool, args []string) {
	p := ts.Value(running{}).(*process)
	signal := syscall.SIGTERM
	if len(args) == 1 {
		signal = map[string]syscall.Signal{"KILL": syscall.SIGKILL, "INT": syscall.SIGINT}[args[0]]
	}
	ts.Check(p.cmd.Process.Signal(signal))
	err := p.cmd.Wait()
	if signal != syscall.SIGKILL && err != nil {
		ts.Fatalf("the daemon ended with %v:\n%s", err, p.stderr)
	}
}

// exits STATUS COMMAND... wants that exit status, and one line that begins with "varve:" on stderr.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var ended *exec.ExitError
		if !errors.As(err, &ended) {
			ts.Fatalf("%v", err)
		}
		got = ended.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
	lines := strings.Split(strings.TrimSuffix(ts.ReadFile("stderr"), "\n"), "\n")
	if !strings.HasPrefix(lines[0], "varve: ") || len(lines) > 2 || len(lines) == 2 && !strings.HasPrefix(lines[1], "hint: ") {
		ts.Fatalf("stderr is not an error and a hint: %q", lines)
	}
}

// field PATH [VALUE] wants the last stdout to be JSON that has the path, such as
// 0.steps.1.name, with the value, as JSON unless it is a string.
func field(ts *testscript.TestScript, neg bool, args []string) {
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &v))
	found := true
	for _, step := range strings.Split(args[0], ".") {
		switch in := v.(type) {
		case map[string]any:
			v, found = in[step]
		case []any:
			i, err := strconv.Atoi(step)
			if found = err == nil && i < len(in); found {
				v = in[i]
			}
		default:
			found = false
		}
		if !found {
			break
		}
	}
	if found && len(args) == 2 {
		text, isText := v.(string)
		if !isText {
			b, err := json.Marshal(v)
			ts.Check(err)
			text = string(b)
		}
		if text != args[1] {
			if neg {
				return
			}
			ts.Fatalf("%s is %s, not %s", args[0], text, args[1])
		}
	}
	if found == neg {
		ts.Fatalf("%s: found is %t", strings.Join(args, " "), found)
	}
}

func dial(ts *testscript.TestScript, export string) *client.Client {
	socket := daemon.NBDSocket(ts.Getenv("VARVE_DATA"))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := client.Dial(ctx, "nbd+unix:///"+url.PathEscape(export)+"?socket="+url.QueryEscape(socket), client.Options{})
	ts.Check(err)
	return c
}

func run(args []string) (off, length int64, fill byte, err error) {
	if len(args) != 4 {
		return 0, 0, 0, errors.New("usage: EXPORT OFFSET LENGTH BYTE")
	}
	off, err1 := strconv.ParseInt(args[1], 10, 64)
	length, err2 := strconv.ParseInt(args[2], 10, 64)
	n, err3 := strconv.ParseUint(args[3], 10, 8)
	return off, length, byte(n), errors.Join(err1, err2, err3)
}

func put(ts *testscript.TestScript, c *client.Client, off, length int64, fill byte) error {
	op := &block.Op{Kind: block.OpWrite, Offset: off, Length: length, Data: bytes.Repeat([]byte{fill}, int(length))}
	c.Submit(context.Background(), []*block.Op{op})
	return op.Err
}

// write EXPORT OFFSET LENGTH BYTE writes over NBD and flushes.
func write(ts *testscript.TestScript, neg bool, args []string) {
	off, length, fill, err := run(args)
	ts.Check(err)
	c := dial(ts, args[0])
	defer c.Close()
	err = put(ts, c, off, length, fill)
	if err == nil {
		err = c.Flush(context.Background())
	}
	if (err != nil) != neg {
		ts.Fatalf("write: %v", err)
	}
}

// holds EXPORT OFFSET LENGTH BYTE wants the range to be that byte all over.
func holds(ts *testscript.TestScript, neg bool, args []string) {
	off, length, fill, err := run(args)
	ts.Check(err)
	c := dial(ts, args[0])
	defer c.Close()
	got := make([]byte, length)
	ts.Check(c.ReadAt(context.Background(), got, off))
	if bytes.Equal(got, bytes.Repeat([]byte{fill}, int(length))) == neg {
		ts.Fatalf("%s holds %d... at %d", args[0], got[0], off)
	}
}

// rot FILE OFFSET changes a byte of a file; rot FILL one of the first block in the log that is filled with that byte.
func rot(ts *testscript.TestScript, _ bool, args []string) {
	change := func(name string, off int64) {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		ts.Check(err)
		b := make([]byte, 1)
		_, err = f.ReadAt(b, off)
		ts.Check(err)
		b[0] ^= 0x10
		_, err = f.WriteAt(b, off)
		ts.Check(errors.Join(err, f.Close()))
	}
	n, err := strconv.ParseInt(args[len(args)-1], 10, 64)
	ts.Check(err)
	if len(args) == 2 {
		change(ts.MkAbs(args[0]), n)
		return
	}
	segments, err := filepath.Glob(filepath.Join(ts.Getenv("VARVE_DATA"), "pool/log/*.seg"))
	ts.Check(err)
	for _, s := range segments {
		data, err := os.ReadFile(s)
		ts.Check(err)
		for off := 0; off+block.Size <= len(data); off += block.Size {
			if bytes.Equal(data[off:off+block.Size], bytes.Repeat([]byte{byte(n)}, block.Size)) {
				change(s, int64(off)+7)
				return
			}
		}
	}
	ts.Fatalf("no block of %d in the log", n)
}

// hold EXPORT [write] keeps a connection open that has written, if so said.
func hold(ts *testscript.TestScript, neg bool, args []string) {
	c := dial(ts, args[0])
	if len(args) == 2 {
		ts.Check(put(ts, c, 0, 4096, 99))
	}
	ts.Value(held{}).(map[string]*client.Client)[args[0]] = c
	ts.Defer(func() { c.Close() })
}

// release EXPORT closes what hold opened; "! release" wants that the daemon has cut it off already.
func release(ts *testscript.TestScript, neg bool, args []string) {
	c := ts.Value(held{}).(map[string]*client.Client)[args[0]]
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := c.ReadAt(ctx, make([]byte, 512), 0)
	if errors.Is(err, client.ErrDisconnected) != neg {
		ts.Fatalf("connection to %s: %v", args[0], err)
	}
	c.Close()
}

// fields NAME... wants the object on the last stdout to have these fields.
func fields(ts *testscript.TestScript, neg bool, args []string) {
	var object map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &object))
	for _, name := range args {
		if _, ok := object[name]; !ok {
			ts.Fatalf("no field %s", name)
		}
	}
}

// mode FILE OCTAL wants the file to have this mode.
func mode(ts *testscript.TestScript, neg bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := strconv.FormatUint(uint64(info.Mode().Perm()), 8); got != args[1] {
		ts.Fatalf("%s has mode %s, not %s", args[0], got, args[1])
	}
}

// jobOf is the job whose id a script put into the file named id.
func jobOf(ts *testscript.TestScript) string { return strings.TrimSpace(ts.ReadFile("id")) }

// job-of-kind KIND puts the id of the newest job of that kind into the file named id.
func jobOfKind(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(ts.Exec("varve", "job", "list", "-o", "json"))
	var jobs []contract.Job
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &jobs))
	for _, j := range slices.Backward(jobs) {
		if j.Kind == args[0] {
			ts.Check(os.WriteFile(ts.MkAbs("id"), []byte(j.ID), 0o600))
			return
		}
	}
	ts.Fatalf("no job of kind %s", args[0])
}

// delete-snapshots VOLUME deletes all snapshots of a volume.
func deleteSnapshots(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(ts.Exec("varve", "snapshot", "list", args[0], "-o", "json"))
	var snapshots []contract.Snapshot
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &snapshots))
	for _, s := range snapshots {
		ts.Check(ts.Exec("varve", "snapshot", "delete", s.Ref()))
	}
}

// lock FILE holds a lock on a file until the script ends, as a program would that works on it.
func lock(ts *testscript.TestScript, neg bool, args []string) {
	f, err := os.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Defer(func() { f.Close() })
	ts.Check(syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB))
}

// wait-job waits for that job and prints it as JSON.
func waitJob(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(ts.Exec("varve", "job", "wait", jobOf(ts), "-o", "json"))
}

// job-ends STATUS waits for that job, prints it as a table, and wants that exit status.
func jobEnds(ts *testscript.TestScript, neg bool, args []string) {
	if args[0] == "0" {
		ts.Check(ts.Exec("varve", "job", "wait", jobOf(ts)))
		return
	}
	exits(ts, neg, []string{args[0], "varve", "job", "wait", jobOf(ts)})
}

// job-refused VERB wants the job to refuse.
func jobRefused(ts *testscript.TestScript, neg bool, args []string) {
	exits(ts, neg, []string{"4", "varve", "job", args[0], jobOf(ts)})
}
