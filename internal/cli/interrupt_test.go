package cli_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A command that waits for what no interrupt reaches, here for a passphrase from a pipe, is ended by a second one.
func TestASecondInterruptEndsTheCommand(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("varve", "repo", "show", "--url", t.TempDir(), "--password-file", pipe)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- cmd.Wait() }()
	defer cmd.Process.Kill()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	deadline := time.After(patience)
	var secret *os.File
	for {
		select {
		case <-again.C:
		case err := <-ended:
			status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if secret == nil || !ok || status.Signal() != syscall.SIGINT {
				t.Fatalf("it ended with %v", err)
			}
			return
		case <-deadline:
			t.Fatal("it goes on waiting")
		}
		if secret != nil {
			_ = cmd.Process.Signal(syscall.SIGINT) // it may have ended
			continue
		}
		// Which works once somebody reads.
		if f, err := os.OpenFile(pipe, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
			defer f.Close()
			secret = f
		}
	}
}
