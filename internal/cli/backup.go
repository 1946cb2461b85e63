package cli

import (
	"bufio"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"varve/internal/contract"
	"varve/internal/depot"
)

type backupCommands struct {
	Create  backupCreate  `cmd:"" help:"Back up volumes, at one instant and as one, or a foreign disk; prints the ids of the backups."`
	List    backupList    `cmd:"" help:"List backups: each full with the incrementals and differentials that were made from it."`
	Show    backupShow    `cmd:"" help:"Show a backup, and what making it took."`
	Verify  backupVerify  `cmd:"" help:"Read backups as a restore does, into nothing. Exit status 5 if something is lost."`
	Delete  backupDelete  `cmd:"" help:"Delete backups, all of them or none. No other is harmed; varve repo prune gives the space back."`
	Diff    backupDiff    `cmd:"" help:"Print the extents whose content changed from one backup of a volume to another."`
	Restore backupRestore `cmd:"" help:"Bring a backup back: to a new volume, into a volume, to a file or a block device."`
}

// vault are the flags that say where backups are looked for.
type vault struct {
	Repo  string `help:"Name of the repository." placeholder:"REPO"`
	Place place  `embed:""`
}

// check refuses flags that do not go together.
func (v vault) check() error {
	switch {
	case v.Place.here() && v.Repo != "":
		return contract.Errorf(contract.CodeUsage, "--repo names a repository that a daemon knows, --url works without one")
	case !v.Place.here() && v.Place.Access.given():
		return contract.Errorf(contract.CodeUsage, "a repository that the daemon knows is opened with what it was added with").
			WithHint("leave the flags out, or work on it without the daemon: --url URL")
	}
	return nil
}

type backupCreate struct {
	What              []string          `arg:"" name:"volume" help:"Volumes. Or, with --as, one source: a raw or qcow2 file, a block device, an nbd:// or nbd+unix:// URI."`
	Vault             vault             `embed:""`
	Type              string            `help:"auto: an incremental if what changed is known, else a full." enum:"auto,full,incremental,differential" default:"auto" placeholder:"TYPE"`
	As                string            `help:"What the source is called in the repository: its backups under one name are of one volume." placeholder:"NAME"`
	Format            string            `help:"Of a source that is a file: raw or qcow2; without, it is detected." enum:",raw,qcow2" default:"" placeholder:"FORMAT"`
	Bitmap            string            `help:"Dirty bitmap of an NBD export that tells what changed since the backup --since." placeholder:"B"`
	Since             string            `help:"That backup." placeholder:"ID"`
	AllowInconsistent bool              `help:"Back a source up that somebody may be writing to: it is of no one instant then."`
	Limit             size              `help:"Bytes a second that go to the store." placeholder:"RATE"`
	Lock              int               `help:"Put the backup under a retention of so many days (buckets with object lock)." placeholder:"DAYS"`
	Label             map[string]string `help:"Label, repeatable." placeholder:"K=V" mapsep:"none"`
}

// request is what is asked for.
func (c backupCreate) request() (r contract.CreateBackup, err error) {
	if err := c.Vault.check(); err != nil {
		return r, err
	}
	if c.Lock < 0 {
		return r, contract.Errorf(contract.CodeUsage, "a retention of %d days", c.Lock)
	}
	r = contract.CreateBackup{Repo: c.Vault.Repo, Type: c.Type, Limit: int64(c.Limit), LockDays: c.Lock, Labels: c.Label}
	if c.As == "" {
		r.Volumes = c.What
		for _, name := range c.What {
			if strings.Contains(name, "/") || c.Vault.Place.here() {
				return r, contract.Errorf(contract.CodeUsage, "back up %s: what is it to be called in the repository?", name).WithHint("--as NAME")
			}
		}
		if c.Bitmap != "" || c.Since != "" || c.AllowInconsistent || c.Format != "" {
			return r, contract.Errorf(contract.CodeUsage, "--bitmap, --since, --format and --allow-inconsistent are for sources that are not volumes").WithHint("say what the source is called: --as NAME")
		}
	} else {
		if len(c.What) != 1 {
			return r, contract.Errorf(contract.CodeUsage, "--as names one source, not %d", len(c.What))
		}
		f := contract.ForeignSource{As: c.As, Format: c.Format, Bitmap: c.Bitmap, Since: c.Since, AllowInconsistent: c.AllowInconsistent}
		if f.Source, err = sourceName(c.What[0]); err != nil {
			return r, err
		}
		r.Foreign = &f
	}
	if !c.Vault.Place.here() && r.Repo == "" {
		return r, contract.Errorf(contract.CodeUsage, "back up to where?").WithHint("--repo REPO (varve repo list), or --url URL to work without a daemon")
	}
	return r, nil
}

// Run backs up.
func (c backupCreate) Run(t *terminal) error {
	r, err := c.request()
	if err != nil {
		return err
	}
	if !c.Vault.Place.here() {
		job, err := t.client.CreateBackup(t.ctx, r)
		if err != nil {
			return err
		}
		return t.finish(job, func(r *contract.Result) error { return t.showMade(r.Backups) })
	}
	return c.Vault.Place.with(t, r.Limit, 0, func(d *depot.Depot) error {
		var made contract.Backup
		var warnings []string
		err := t.work("backup "+r.Foreign.As, func(p depot.Progress) (err error) {
			made, warnings, err = d.BackupForeign(t.ctx, r, p)
			return err
		})
		t.warn(warnings...)
		if err != nil {
			return err
		}
		return t.showMade([]contract.Backup{made})
	})
}

// showMade prints ids, for scripts; what was done is said beside.
func (t *terminal) showMade(made []contract.Backup) error {
	for _, b := range made {
		if b.Mismatched > 0 {
			t.warn(fmt.Sprintf("%s: a block had changed that was not tracked, so all were compared", b.Volume))
		}
		t.chat("%s: %s (%s): read %s, stored %s, %.2f s", b.Volume, b.Type, b.Reason, humanSize(b.ReadBytes), humanSize(b.StoredBytes), b.Seconds)
	}
	return t.print(made, func(w *table) {
		for _, b := range made {
			w.row(b.ID)
		}
	})
}

type backupList struct {
	Volume string `arg:"" optional:"" help:"Only of this volume."`
	Vault  vault  `embed:""`
}

// Run lists backups.
func (c backupList) Run(t *terminal) error {
	if err := c.Vault.check(); err != nil {
		return err
	}
	show := func(all []contract.Backup) error {
		return t.print(all, func(w *table) { drawBackups(w, all, t.fancy) })
	}
	if !c.Vault.Place.here() {
		all, err := t.client.Backups(t.ctx, c.Vault.Repo, c.Volume)
		if err != nil {
			return err
		}
		return show(all)
	}
	return c.Vault.Place.with(t, 0, 0, func(d *depot.Depot) error {
		all, warnings, err := d.Backups(t.ctx, c.Volume)
		if err != nil {
			return err
		}
		t.warn(warnings...)
		return show(all)
	})
}

// drawBackups draws each full with what was made from it, oldest first; what an incremental was made from is named, as it may be any of
// those above. One that is gone is not needed.
func drawBackups(w *table, all []contract.Backup, unicode bool) {
	last, middle := "`- ", "|- "
	if unicode {
		last, middle = "└─ ", "├─ "
	}
	type family struct{ repo, volume, full string }
	groups := map[family][]contract.Backup{}
	there := map[[2]string]bool{}
	var order []family
	for _, b := range all {
		f := family{b.Repo, b.VolumeID, b.FullID}
		if groups[f] == nil {
			order = append(order, f)
		}
		groups[f] = append(groups[f], b)
		there[[2]string{b.Repo, b.ID}] = true
	}
	slices.SortStableFunc(order, func(a, b family) int {
		return cmp.Or(strings.Compare(a.repo, b.repo), strings.Compare(groups[a][0].Volume, groups[b][0].Volume), strings.Compare(a.volume, b.volume))
	})
	w.row("BACKUP", "VOLUME", "REPO", "CREATED", "TYPE", "DEPENDS ON", "SIZE", "READ", "STORED", "")
	for _, f := range order {
		members := groups[f]
		for i, b := range members {
			id := b.ID
			if b.Type != contract.BackupFull {
				id = middle + id
				if i == len(members)-1 {
					id = last + b.ID
				}
			}
			w.row(id, b.Volume, b.Repo, localTime(&b.CreatedAt), b.Type, dependsOn(b, there), humanSize(b.Size), humanSize(b.ReadBytes), humanSize(b.StoredBytes),
				listed(yes(b.State != contract.BackupGood, string(b.State)), yes(b.Consistency == "none", "inconsistent"), yes(len(b.Group) > 0, "group "+b.GroupID)))
		}
	}
}

func dependsOn(b contract.Backup, there map[[2]string]bool) string {
	var out []string
	for _, id := range b.DependsOn {
		if !there[[2]string{b.Repo, id}] {
			id += " (gone, not needed)"
		}
		out = append(out, id)
	}
	return cmp.Or(strings.Join(out, " "), "-")
}

type backupShow struct {
	ID    string `arg:"" name:"backup" help:"Backup: its id, or the beginning of it."`
	Vault vault  `embed:""`
}

// Run shows a backup.
func (c backupShow) Run(t *terminal) error {
	if err := c.Vault.check(); err != nil {
		return err
	}
	if !c.Vault.Place.here() {
		b, err := t.client.Backup(t.ctx, c.Vault.Repo, c.ID)
		if err != nil {
			return err
		}
		return t.showBackup(b)
	}
	return c.Vault.Place.with(t, 0, 0, func(d *depot.Depot) error {
		b, err := d.Backup(t.ctx, c.ID)
		if err != nil {
			return err
		}
		return t.showBackup(b)
	})
}

func (t *terminal) showBackup(b contract.Backup) error {
	return t.print(b, func(w *table) { drawBackup(w, b) })
}

func drawBackup(w *table, b contract.Backup) {
	w.row("id", b.ID)
	w.row("repository", b.Repo)
	w.row("volume", b.Volume+" ("+b.VolumeID+")")
	w.row("source", b.Source)
	w.row("created", localTime(&b.CreatedAt))
	w.row("size", humanSize(b.Size))
	w.row("holds", humanSize(b.MappedBytes))
	w.row("type", b.Type)
	w.row("reason", b.Reason)
	w.field("made from", b.BaseID)
	w.field("depends on", strings.Join(b.DependsOn, " "))
	w.row("state", b.State)
	w.row("consistency", b.Consistency)
	if len(b.Group) > 0 {
		w.row("group", b.GroupID+", with "+strings.Join(b.Group, " "))
	}
	w.field("labels", joined(b.Labels))
	w.field("policy", b.PolicyID)
	w.row("made by", b.Program+" on "+b.Host)
	w.row()
	w.row("read", humanSize(b.ReadBytes))
	w.row("changed", humanSize(b.ChangedBytes))
	if b.Sampled > 0 {
		w.row("distrusted", fmt.Sprintf("%d blocks compared, %d had changed untold", b.Sampled, b.Mismatched))
	}
	if len(b.Group) > 0 {
		w.row("of the group:")
	}
	drawDedup(w, b.NewBytes, b.DuplicateBytes, b.CompressedBytes)
	w.row("stored", fmt.Sprintf("%s in %d objects: maps %s, parity %s", humanSize(b.StoredBytes), b.Objects, humanSize(b.MapBytes), humanSize(b.ParityBytes)))
	w.row("requests", b.Requests)
	if len(b.Freeze) > 0 || b.FreezeMS > 0 {
		w.row("frozen", fmt.Sprintf("%.2f ms", b.FreezeMS))
		for _, s := range b.Freeze {
			w.row("  "+s.Name, fmt.Sprintf("%.2f ms", s.MS))
		}
	}
	drawStages(w, b.Seconds, b.Stages)
}

type backupVerify struct {
	IDs   []string `arg:"" name:"backup" help:"Backups: ids, or beginnings of them."`
	Vault vault    `embed:""`
	Limit size     `help:"Bytes a second that come from the store." placeholder:"RATE"`
}

// Run verifies backups.
func (c backupVerify) Run(t *terminal) error {
	if err := c.Vault.check(); err != nil {
		return err
	}
	if !c.Vault.Place.here() {
		job, err := t.client.VerifyBackups(t.ctx, contract.VerifyBackups{Repo: c.Vault.Repo, Backups: c.IDs, Limit: int64(c.Limit)})
		if err != nil {
			return err
		}
		return t.finish(job, func(r *contract.Result) error { return t.showVerified(r.Verified) })
	}
	return c.Vault.Place.with(t, 0, int64(c.Limit), func(d *depot.Depot) error {
		var all []contract.BackupVerification
		err := t.work("verify", func(p depot.Progress) (err error) {
			all, err = d.Verify(t.ctx, c.IDs, p)
			return err
		})
		if err == nil || isDamage(err) {
			err = also(err, t.showVerified(all))
		}
		return err
	})
}

func (t *terminal) showVerified(all []contract.BackupVerification) error {
	return t.print(all, func(w *table) { drawVerified(w, all) })
}

// shownMessages is how many of what is wrong with a backup people are shown: one lost pack is a hundred chunks.
const shownMessages = 5

func drawVerified(w *table, all []contract.BackupVerification) {
	w.row("BACKUP", "VOLUME", "VERIFIED", "LOST", "TOOK")
	for _, v := range all {
		var lost int64
		for _, e := range v.Lost {
			lost += e.Length
		}
		w.row(v.Backup.ID, v.Backup.Volume, humanSize(v.Bytes), humanSize(lost), fmt.Sprintf("%.2f s", v.Seconds))
	}
	bad := slices.ContainsFunc(all, func(v contract.BackupVerification) bool { return !v.OK() })
	if !bad {
		return
	}
	w.row()
	w.row("LOST OF BACKUP", "VOLUME", "OFFSET", "LENGTH")
	for _, v := range all {
		if !v.OK() {
			drawLost(w, v.Backup.ID, v.Backup.Volume, v.Whole, v.Lost)
		}
	}
	w.row()
	for _, v := range all {
		for _, m := range v.Messages[:min(len(v.Messages), shownMessages)] {
			w.row(v.Backup.ID, oneLine(m))
		}
		if more := len(v.Messages) - shownMessages; more > 0 {
			w.row(v.Backup.ID, fmt.Sprintf("and %d more; -o json has them", more))
		}
	}
}

type backupDelete struct {
	IDs   []string `arg:"" name:"backup" help:"Backups: ids, or beginnings of them."`
	Vault vault    `embed:""`
}

// Run deletes backups.
func (c backupDelete) Run(t *terminal) error {
	if err := c.Vault.check(); err != nil {
		return err
	}
	if !c.Vault.Place.here() {
		return t.client.DeleteBackups(t.ctx, contract.DeleteBackups{Repo: c.Vault.Repo, Backups: c.IDs})
	}
	return c.Vault.Place.with(t, 0, 0, func(d *depot.Depot) error {
		_, err := d.Delete(t.ctx, c.IDs)
		return err
	})
}

type backupDiff struct {
	Older string `arg:"" name:"older backup" help:"Backup to compare with."`
	Newer string `arg:"" name:"newer backup" help:"Backup that is compared."`
	Vault vault  `embed:""`
}

// Run prints the extents as they are found: there may be millions.
func (c backupDiff) Run(t *terminal) error {
	if err := c.Vault.check(); err != nil {
		return err
	}
	w := bufio.NewWriterSize(t.stdout, 64<<10)
	write := t.extentTable
	if t.Output == "json" {
		write = t.extentJSON
	}
	if !c.Vault.Place.here() {
		err := write(w, func(visit func(contract.Extent) error) error {
			return t.client.DiffBackups(t.ctx, c.Vault.Repo, c.Older, c.Newer, visit)
		})
		return also(err, w.Flush())
	}
	return c.Vault.Place.with(t, 0, 0, func(d *depot.Depot) error {
		err := write(w, func(visit func(contract.Extent) error) error { return d.Diff(t.ctx, c.Older, c.Newer, visit) })
		return also(err, w.Flush())
	})
}
