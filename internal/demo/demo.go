// Package demo is `varve demo`: it runs a daemon on a scratch directory and
// tells the whole story of a disk on it. A disk image is imported, served over
// NBD, written, snapshotted, overwritten, rolled back, cloned, exported, and
// found again after a restart. Every step is read back through a client and
// compared byte for byte with what memory says it must be.
package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/daemon"
	"varve/internal/nbd/client"
)

// story is a demo under way.
type story struct {
	ctx     context.Context
	out     io.Writer
	scratch string
	daemon  *daemon.Daemon
	random  *rand.ChaCha8
}

// Run tells the story on out. It ends without error only if every step held,
// and leaves nothing behind.
func Run(ctx context.Context, out io.Writer) (err error) {
	scratch, err := os.MkdirTemp("", "varve-demo-")
	if err != nil {
		return fmt.Errorf("make a scratch directory: %w", err)
	}
	s := &story{ctx: ctx, out: out, scratch: scratch, random: rand.NewChaCha8([32]byte([]byte("every run tells the same story..")))}
	defer func() {
		err = errors.Join(err, s.stop(), os.RemoveAll(scratch))
	}()
	began := time.Now()
	fmt.Fprintf(out, "varve demo in %s\n\n", scratch)
	if err := s.tell(); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	fmt.Fprintf(out, "\nall of it held, in %.1f s; the scratch directory is gone\n", time.Since(began).Seconds())
	return nil
}

func (s *story) start() (err error) {
	s.daemon, err = daemon.Start(s.ctx, daemon.Config{DataDir: filepath.Join(s.scratch, "data"), Version: "demo"})
	return err
}

func (s *story) stop() error {
	if s.daemon == nil {
		return nil
	}
	d := s.daemon
	s.daemon = nil
	return d.Stop(context.WithoutCancel(s.ctx))
}

// step does one thing and says what it did and how long that took.
func (s *story) step(what string, do func() (note string, err error)) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	began := time.Now()
	note, err := do()
	took := time.Since(began)
	if err != nil {
		fmt.Fprintf(s.out, "  FAILED  %s: %v\n", what, err)
		return fmt.Errorf("%s: %w", what, err)
	}
	fmt.Fprintf(s.out, "  ok %8.1f ms  %-50s %s\n", float64(took.Microseconds())/1000, what, note)
	return nil
}

const mib = 1 << 20

func (s *story) tell() error {
	var imported, before, after []byte // what the disk must hold: as imported, when snapshotted, when spoilt
	file := filepath.Join(s.scratch, "disk.img")

	return s.steps(
		"make a disk image", func() (note string, err error) {
			if note, err = makeDisk(s.ctx, s.scratch, file); err == nil {
				imported, err = os.ReadFile(file)
			}
			return note, err
		},
		"start a daemon on an empty directory", func() (string, error) {
			return "served on a unix socket", s.start()
		},
		"import the image as volume web", func() (string, error) {
			r, err := s.wait(s.daemon.StartImport(contract.Import{Name: "web", File: file}))
			if err != nil {
				return "", err
			}
			return sizes(r.Volume), s.holds("web", imported)
		},
		"write through an NBD client, then flush", func() (string, error) {
			before = bytes.Clone(imported)
			n, err := s.scribble("web", before, 400)
			return fmt.Sprintf("%d writes, %.1f MiB", 400, n), errors.Join(err, s.holds("web", before))
		},
		"snapshot web@before", func() (string, error) {
			made, err := s.daemon.CreateSnapshots(s.ctx, contract.CreateSnapshot{Volumes: []string{"web"}, Name: "before"})
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("writers waited %.2f ms, durable after %.2f ms", *made[0].PauseMS, *made[0].DurableMS), nil
		},
		"overwrite, zero and discard parts of web", func() (string, error) {
			after = bytes.Clone(before)
			n, err := s.scribble("web", after, 800)
			return fmt.Sprintf("%d writes, %.1f MiB", 800, n), errors.Join(err, s.erase("web", after), s.holds("web", after))
		},
		"read the snapshot back", func() (string, error) {
			return "byte for byte what it was", s.holds("web@before", before)
		},
		"roll back behind the back of a client", func() (string, error) {
			return s.refusedRollback(after)
		},
		"roll back to web@before", func() (string, error) {
			r, err := s.daemon.Rollback(s.ctx, "web@before", false)
			if err != nil {
				return "", err
			}
			note := fmt.Sprintf("writers waited %.2f ms; the spoilt state is kept as %s", r.PauseMS, r.Kept.Ref())
			return note, errors.Join(s.holds("web", before), s.holds(r.Kept.Ref(), after))
		},
		"clone web@before and write to the clone", func() (string, error) {
			clone, err := s.daemon.CreateVolume(s.ctx, contract.CreateVolume{Name: "rehearsal", From: "web@before"})
			if err != nil {
				return "", err
			}
			rehearsal := bytes.Clone(before)
			_, err = s.scribble("rehearsal", rehearsal, 200)
			return fmt.Sprintf("durable after %.2f ms; neither web nor the snapshot noticed", *clone.DurableMS),
				errors.Join(err, s.holds("rehearsal", rehearsal), s.holds("web", before), s.holds("web@before", before))
		},
		"export web as a raw file", func() (string, error) { return s.exportRaw(before) },
		"export web as qcow2, and import that again", func() (string, error) { return s.exportQcow2(before) },
		"stop the daemon and start it again", func() (string, error) {
			if err := errors.Join(s.stop(), s.start()); err != nil {
				return "", err
			}
			return "volumes and snapshots are as they were", errors.Join(s.holds("web", before), s.holds("web@before", before))
		},
		"verify every block in the pool", func() (string, error) {
			r, err := s.wait(s.daemon.StartCheck())
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("%d blocks, %d map nodes, no damage", r.Check.Blocks, r.Check.MapNodes), nil
		},
	)
}

// steps takes pairs of what a step is called and what it does.
func (s *story) steps(pairs ...any) error {
	for i := 0; i < len(pairs); i += 2 {
		if err := s.step(pairs[i].(string), pairs[i+1].(func() (string, error))); err != nil {
			return err
		}
	}
	return nil
}

func sizes(v *contract.Volume) string {
	return fmt.Sprintf("%.0f MiB, of which %.1f MiB are data", float64(v.Size)/mib, float64(v.MappedBytes)/mib)
}

// wait returns what a job came to.
func (s *story) wait(j contract.Job, err error) (*contract.Result, error) {
	if err != nil {
		return nil, err
	}
	j, err = s.daemon.WaitJob(s.ctx, j.ID)
	if err != nil {
		return nil, err
	}
	if j.State != contract.JobDone {
		return nil, fmt.Errorf("%s is %s: %s", j.Kind, j.State, j.Reason)
	}
	return j.Result, nil
}

func (s *story) dial(export string) (*client.Client, error) {
	socket := daemon.NBDSocket(filepath.Join(s.scratch, "data"))
	return client.Dial(s.ctx, "nbd+unix:///"+url.PathEscape(export)+"?socket="+url.QueryEscape(socket), client.Options{})
}

// holds reads a whole export and compares it with what it must be.
func (s *story) holds(export string, want []byte) error {
	c, err := s.dial(export)
	if err != nil {
		return err
	}
	defer c.Close()
	if c.SizeBytes() != int64(len(want)) {
		return fmt.Errorf("%s has %d bytes, not %d", export, c.SizeBytes(), len(want))
	}
	got := make([]byte, mib)
	for off := 0; off < len(want); off += mib {
		part := got[:min(mib, len(want)-off)]
		if err := c.ReadAt(s.ctx, part, int64(off)); err != nil {
			return err
		}
		if !bytes.Equal(part, want[off:off+len(part)]) {
			return fmt.Errorf("%s differs from what was written, within 1 MiB from byte %d", export, off)
		}
	}
	return nil
}

// scribble writes n random pieces of up to 64 KiB at any byte, to the export and to the model, and flushes.
// It returns how many MiB that was.
func (s *story) scribble(export string, model []byte, n int) (float64, error) {
	c, err := s.dial(export)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	random := rand.New(s.random)
	total := 0
	for range n {
		off := random.IntN(len(model) - 64<<10)
		piece := model[off : off+1+random.IntN(64<<10)]
		s.random.Read(piece)
		total += len(piece)
		if err := submit(s.ctx, c, &block.Op{Kind: block.OpWrite, Offset: int64(off), Length: int64(len(piece)), Data: piece}); err != nil {
			return 0, err
		}
	}
	return float64(total) / mib, c.Flush(s.ctx)
}

// erase zeroes one stretch and discards another.
func (s *story) erase(export string, model []byte) error {
	c, err := s.dial(export)
	if err != nil {
		return err
	}
	defer c.Close()
	clear(model[1*mib : 3*mib])
	clear(model[8*mib : 12*mib])
	return errors.Join(
		submit(s.ctx, c, &block.Op{Kind: block.OpZero, Offset: 1 * mib, Length: 2 * mib}),
		submit(s.ctx, c, &block.Op{Kind: block.OpDiscard, Offset: 8 * mib, Length: 4 * mib}),
		c.Flush(s.ctx))
}

func submit(ctx context.Context, d block.Device, op *block.Op) error {
	d.Submit(ctx, []*block.Op{op})
	return op.Err
}

// refusedRollback shows that a rollback does not happen behind a writer's back.
func (s *story) refusedRollback(model []byte) (string, error) {
	c, err := s.dial("web")
	if err != nil {
		return "", err
	}
	defer c.Close()
	piece := model[:4096]
	if err := submit(s.ctx, c, &block.Op{Kind: block.OpWrite, Length: int64(len(piece)), Data: piece}); err != nil {
		return "", err
	}
	_, err = s.daemon.Rollback(s.ctx, "web@before", false)
	told := daemon.Describe(err)
	if told == nil || told.Code != contract.CodeRefused {
		return "", fmt.Errorf("it was not refused: %w", err)
	}
	return "refused, nothing changed", s.holds("web", model)
}

func (s *story) exportRaw(want []byte) (string, error) {
	file := filepath.Join(s.scratch, "export.img")
	if _, err := s.wait(s.daemon.StartExport(contract.ExportFile{Source: "web", File: file, Format: "raw"})); err != nil {
		return "", err
	}
	got, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	if !bytes.Equal(got, want) {
		return "", errors.New("the file differs from the volume")
	}
	return fmt.Sprintf("%.0f MiB, same bytes", float64(len(got))/mib), nil
}

func (s *story) exportQcow2(want []byte) (string, error) {
	file := filepath.Join(s.scratch, "export.qcow2")
	if _, err := s.wait(s.daemon.StartExport(contract.ExportFile{Source: "web@before", File: file, Format: "qcow2"})); err != nil {
		return "", err
	}
	note := "same bytes"
	if qemu, err := exec.LookPath("qemu-img"); err == nil {
		if said, err := exec.CommandContext(s.ctx, qemu, "check", "-q", file).CombinedOutput(); err != nil {
			return "", fmt.Errorf("qemu-img check: %w: %s", err, said)
		}
		note += "; qemu-img check finds no fault"
	}
	if _, err := s.wait(s.daemon.StartImport(contract.Import{Name: "imported", File: file})); err != nil {
		return "", err
	}
	return note, s.holds("imported", want)
}
