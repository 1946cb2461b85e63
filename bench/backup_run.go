package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"varve/internal/contract"
)

// spent is what a command took.
type spent struct {
	Seconds float64 `json:"seconds"`        // from its start to its end
	CPU     float64 `json:"cpu_seconds"`    // user and system time; of a daemon that did the work, and of who asked it
	RSS     int64   `json:"peak_rss_bytes"` // the most memory that the process which did the work had
	Told    *told   `json:"told,omitempty"` // of a backup by varve
}

// told is what varve says of a backup that it made.
type told struct {
	Type     string `json:"type"`
	Read     int64  `json:"read_bytes"`
	Stored   int64  `json:"stored_bytes"`
	Parity   int64  `json:"parity_bytes"`
	Objects  int64  `json:"objects"`
	Requests int64  `json:"requests"`
}

func toldOf(b contract.Backup) *told {
	return &told{Type: b.Type, Read: b.ReadBytes, Stored: b.StoredBytes, Parity: b.ParityBytes, Objects: b.Objects, Requests: b.Requests}
}

// timed runs a program in a directory, with variables added to its environment, and returns what it took and what it printed.
func timed(ctx context.Context, dir string, env []string, name string, args ...string) (spent, []byte, error) {
	// Before its program begins the kernel counts to a process what the one that started it ever had.
	if err := countMemoryAnew("self"); err != nil {
		return spent{}, nil, err
	}
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, append(os.Environ(), env...), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	began := time.Now()
	err := cmd.Run()
	took := time.Since(began)
	if err != nil {
		return spent{}, nil, fmt.Errorf("%s%s: %w: %s", filepath.Base(name), words(args), err, bytes.TrimSpace(stderr.Bytes()))
	}
	s := spent{Seconds: round3(took.Seconds()), CPU: round3((cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds())}
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		s.RSS = usage.Maxrss * 1024
	}
	return s, stdout.Bytes(), nil
}

// words are the arguments before the first that is a flag or a file.
func words(args []string) (out string) {
	for _, arg := range args {
		if strings.HasPrefix(arg, "-") || strings.Contains(arg, "/") {
			break
		}
		out += " " + arg
	}
	return out
}

// countMemoryAnew has the most memory that a process ever had be what it has now.
func countMemoryAnew(process string) error {
	if err := os.WriteFile(filepath.Join("/proc", process, "clear_refs"), []byte("5"), 0); err != nil {
		return fmt.Errorf("count a process's memory anew: %w", err)
	}
	return nil
}

// treeSize is how many bytes all files below a directory have.
func treeSize(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			size += info.Size()
		}
		return notGone(err)
	})
	return size, err
}

// notGone is nil for a file that was deleted meanwhile.
func notGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// warmFiles reads a file, or all below a directory, so that they are in the page cache.
func warmFiles(root string) error {
	return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return notGone(err)
		}
		defer f.Close()
		_, err = io.Copy(io.Discard, f)
		return err
	})
}

// errDiffers says that what was restored is not what was backed up.
var errDiffers = errors.New("the files differ")

// sameContent is nil if two files have the same bytes.
func sameContent(a, b string) error {
	fa, err := os.Open(a)
	if err != nil {
		return err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return err
	}
	defer fb.Close()
	pa, pb := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); ; {
		na, erra := io.ReadFull(fa, pa)
		nb, errb := io.ReadFull(fb, pb)
		if na != nb || !bytes.Equal(pa[:na], pb[:nb]) {
			return fmt.Errorf("%w somewhere in the MiB at byte %d", errDiffers, at)
		}
		if at += int64(na); erra != nil || errb != nil {
			return errors.Join(ended(erra), ended(errb))
		}
	}
}

// ended is the error of a read that did not just come to the end.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
