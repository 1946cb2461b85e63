package cli

import (
	"fmt"

	"varve/internal/contract"
	"varve/internal/depot"
)

type backupRestore struct {
	ID          string `arg:"" name:"backup" help:"Backup: its id, or the beginning of it."`
	Vault       vault  `embed:""`
	ToVolume    string `help:"Make a new volume of it." placeholder:"NAME"`
	Instant     bool   `help:"With --to-volume: it can be used at once, and fills in the background."`
	To          string `help:"Write it to this file, or over this block device, which needs --force. Cut short, the same command goes on." placeholder:"FILE"`
	Format      string `help:"Of the file." enum:"raw,qcow2" default:"raw" placeholder:"FORMAT"`
	InPlace     string `help:"Make it what this volume holds; only blocks that differ are written." placeholder:"VOLUME"`
	SkipDamaged bool   `help:"Go on around what is lost: it reads as zeros, and is listed. Exit status 5 then."`
	Limit       size   `help:"Bytes a second that come from the store." placeholder:"RATE"`
}

func (c backupRestore) request(t *terminal) (r contract.RestoreBackup, err error) {
	if err := c.Vault.check(); err != nil {
		return r, err
	}
	targets := 0
	for _, name := range []string{c.ToVolume, c.To, c.InPlace} {
		if name != "" {
			targets++
		}
	}
	switch {
	case targets != 1:
		return r, contract.Errorf(contract.CodeUsage, "restore %s to where?", c.ID).WithHint("one of --to FILE, --to-volume NAME and --in-place VOLUME")
	case c.Instant && c.ToVolume == "":
		return r, contract.Errorf(contract.CodeUsage, "--instant goes with --to-volume NAME")
	case c.Format == "qcow2" && c.To == "":
		return r, contract.Errorf(contract.CodeUsage, "--format goes with --to FILE")
	case c.Vault.Place.here() && c.To == "":
		return r, contract.Errorf(contract.CodeUsage, "volumes are a daemon's, and with --url there is none").WithHint("--to FILE; or have the daemon know the repository: varve repo add")
	}
	r = contract.RestoreBackup{
		Repo: c.Vault.Repo, Backup: c.ID, ToVolume: c.ToVolume, Instant: c.Instant, InPlace: c.InPlace,
		SkipDamaged: c.SkipDamaged, Limit: int64(c.Limit), Force: t.Force,
	}
	if c.To != "" {
		r.Format = c.Format
		r.ToFile, err = absolute(c.To)
	}
	return r, err
}

// Run restores a backup.
func (c backupRestore) Run(t *terminal) error {
	r, err := c.request(t)
	if err != nil {
		return err
	}
	if !c.Vault.Place.here() {
		job, err := t.client.RestoreBackup(t.ctx, r)
		if err != nil {
			return err
		}
		return t.finish(job, func(r *contract.Result) error { return t.showRestored(r.Restore) })
	}
	return c.Vault.Place.with(t, 0, r.Limit, func(d *depot.Depot) error {
		var done contract.BackupRestore
		err := t.work("restore "+c.ID, func(p depot.Progress) (err error) {
			done, err = d.RestoreFile(t.ctx, r, p)
			return err
		})
		if err == nil || len(done.Lost) > 0 {
			err = also(err, t.showRestored(&done))
		}
		return err
	})
}

func (t *terminal) showRestored(r *contract.BackupRestore) error {
	if r == nil {
		return nil
	}
	if r.Fill != nil {
		t.chat("%s can be used; job %s fills it meanwhile", r.Target, r.Fill.ID)
	}
	if r.CopyBack != nil {
		t.chat("%s is as it was then; job %s copies it into its file meanwhile", r.Target, r.CopyBack.ID)
	}
	return t.print(r, func(w *table) { drawRestored(w, r) })
}

func drawRestored(w *table, r *contract.BackupRestore) {
	w.row("backup", r.Backup.ID+" of "+r.Backup.Volume+", "+localTime(&r.Backup.CreatedAt))
	w.row("target", r.Target)
	w.field("format", r.Format)
	w.row("size", humanSize(r.Size))
	w.row("written", humanSize(r.WrittenBytes))
	if r.SameBytes > 0 {
		w.row("there already", humanSize(r.SameBytes))
	}
	if r.ZeroedBytes > 0 {
		w.row("zeroed", humanSize(r.ZeroedBytes))
	}
	if r.Kept != nil {
		w.row("present kept as", r.Kept.Ref())
	}
	w.row("took", fmt.Sprintf("%.2f s, %d requests", r.Seconds, r.Requests))
	if len(r.Lost) > 0 {
		w.row()
		w.row("LOST, ZEROS NOW", "OFFSET", "LENGTH")
		for _, e := range r.Lost {
			w.row("", e.Offset, e.Length)
		}
	}
}
