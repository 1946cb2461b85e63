package cli

import (
	"fmt"
	"path/filepath"
	"strings"

	"varve/internal/contract"
)

type volumeCommands struct {
	Create   volumeCreate   `cmd:"" help:"Create a volume: empty, from an image, or as an instant clone of a snapshot."`
	Adopt    volumeAdopt    `cmd:"" help:"Make a volume of a raw image or block device where it lies; nothing of it is changed."`
	List     volumeList     `cmd:"" help:"List volumes."`
	Show     volumeShow     `cmd:"" help:"Show a volume."`
	Rename   volumeRename   `cmd:"" help:"Rename a volume."`
	Label    volumeLabel    `cmd:"" help:"Set labels; an empty value removes one."`
	Resize   volumeResize   `cmd:"" help:"Grow a volume; shrink it with --force."`
	Delete   volumeDelete   `cmd:"" help:"Delete a volume that has no snapshots; an adopted file stays as it is then."`
	Export   volumeExport   `cmd:"" help:"Write a volume or a snapshot to an image file."`
	Relayout volumeRelayout `cmd:"" help:"Rewrite what a volume has for itself in order, so that it reads fast again; clients go on meanwhile."`
	CopyBack volumeCopyBack `cmd:"" help:"Go on copying a rollback back into an adopted file, where that was cancelled or failed."`
	Fill     volumeFill     `cmd:"" help:"Go on filling a volume that was restored instantly from its backup, where that was cancelled or failed."`
}

type volumeCreate struct {
	Volume  string            `arg:"" name:"name" help:"Name: lower-case letters, digits, dot, underscore, hyphen."`
	Size    size              `help:"Size; needed unless --from gives it." placeholder:"SIZE"`
	From    string            `help:"A raw or qcow2 file, or a snapshot VOLUME@NAME to clone. A file whose name looks like a snapshot's: ./FILE." placeholder:"SRC"`
	Inplace string            `help:"Have it lie in a new raw file of its own, PATH, which must not exist." placeholder:"PATH"`
	Format  string            `help:"Format of the image: raw or qcow2. Without, it is detected, which trusts whoever wrote the image: a raw disk can be made to look like a qcow2 that names other files." enum:",raw,qcow2" default:"" placeholder:"FORMAT"`
	Label   map[string]string `help:"Label, repeatable." placeholder:"K=V" mapsep:"none"`
}

// Run creates a volume.
func (c volumeCreate) Run(t *terminal) error {
	if _, _, isRef := contract.ParseRef(c.From); c.From != "" && (!isRef || strings.Contains(c.From, "/")) {
		file, err := filepath.Abs(c.From)
		if err != nil {
			return fmt.Errorf("%s: %w", c.From, err)
		}
		job, err := t.client.Import(t.ctx, contract.Import{Name: c.Volume, File: file, Format: c.Format, Size: int64(c.Size), Labels: c.Label})
		if err != nil {
			return err
		}
		return t.finish(job, func(r *contract.Result) error { return t.showVolume(*r.Volume) })
	}
	if c.From != "" {
		from, err := t.client.Snapshot(t.ctx, c.From)
		if err == nil && from.Class == "physical" && from.File != "" { // nothing in the pool to begin with
			job, err := t.client.Import(t.ctx, contract.Import{Name: c.Volume, Snapshot: c.From, Size: int64(c.Size), Labels: c.Label})
			if err != nil {
				return err
			}
			return t.finish(job, func(r *contract.Result) error { return t.showVolume(*r.Volume) })
		}
	}
	request := contract.CreateVolume{Name: c.Volume, Size: int64(c.Size), From: c.From, Labels: c.Label}
	if c.Inplace != "" {
		var err error
		if request.Inplace, err = filepath.Abs(c.Inplace); err != nil {
			return fmt.Errorf("%s: %w", c.Inplace, err)
		}
	}
	volume, err := t.client.CreateVolume(t.ctx, request)
	if err != nil {
		return err
	}
	return t.showVolume(volume)
}

// Validate implements kong's check before Run.
func (c volumeCreate) Validate() error {
	if c.From != "" && c.Inplace != "" {
		return fmt.Errorf("--from and --inplace: a volume in a file of its own begins empty; to have a file as it is: varve volume adopt")
	}
	if c.From == "" && c.Size == 0 {
		return fmt.Errorf("a size is needed, larger than 0: --size 10G")
	}
	if c.From == "" && c.Format != "" {
		return fmt.Errorf("--format is of the image that --from names")
	}
	return nil
}

type volumeAdopt struct {
	Volume string            `arg:"" name:"name" help:"Name of the volume."`
	Path   string            `arg:"" help:"Raw file or block device. It is locked while the daemon runs; nobody else may write to it as long as it is adopted."`
	Label  map[string]string `help:"Label, repeatable." placeholder:"K=V" mapsep:"none"`
}

// Run adopts a file.
func (c volumeAdopt) Run(t *terminal) error {
	path, err := filepath.Abs(c.Path)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Path, err)
	}
	volume, err := t.client.AdoptVolume(t.ctx, contract.AdoptVolume{Name: c.Volume, Path: path, Labels: c.Label, Force: t.Force})
	if err != nil {
		return err
	}
	if volume.ReadOnly {
		fmt.Fprintf(t.stderr, "varve: warning: %s cannot be written, so volume %s is read-only\n", oneLine(volume.Path), volume.Name)
	}
	return t.showVolume(volume)
}

type volumeList struct{}

// Run lists volumes.
func (volumeList) Run(t *terminal) error {
	volumes, err := t.client.Volumes(t.ctx)
	if err != nil {
		return err
	}
	return t.print(volumes, func(w *table) {
		w.row("NAME", "LAYOUT", "SIZE", "MAPPED", "EXCLUSIVE", "SNAPSHOTS", "CLIENTS", "NOTES")
		for _, v := range volumes {
			w.row(v.Name, v.Layout, humanSize(v.Size), humanSize(v.MappedBytes), humanSize(v.ExclusiveBytes), v.Snapshots, len(v.Clients), volumeNotes(v))
		}
	})
}

// volumeNotes are what is out of the ordinary, and the labels.
func volumeNotes(v contract.Volume) string {
	return listed(yes(v.Deleted, "deleted"), yes(v.ReadOnly, "read-only"), yes(v.Broken != "", "broken"), yes(v.Suspect, "file changed by somebody else"),
		yes(v.CopyingBack, "rollback being copied back"), filling(v), joined(v.Labels))
}

// filling tells of a volume that was restored instantly how much of it is in the pool; empty once all is.
func filling(v contract.Volume) string {
	if v.FilledFrom == "" {
		return ""
	}
	percent := int64(0)
	if v.FilledBytes != nil && v.Size > 0 {
		percent = 100 * *v.FilledBytes / v.Size
	}
	return fmt.Sprintf("filled from backup %s to %d%%", v.FilledFrom, percent)
}

type volumeShow struct {
	Volume string `arg:"" help:"Volume."`
}

// Run shows a volume.
func (c volumeShow) Run(t *terminal) error {
	volume, err := t.client.Volume(t.ctx, c.Volume)
	if err != nil {
		return err
	}
	return t.showVolume(volume)
}

func (t *terminal) showVolume(v contract.Volume) error {
	return t.print(v, func(w *table) { drawVolume(w, v) })
}

func drawVolume(w *table, v contract.Volume) {
	w.row("name", v.Name)
	w.field("deleted", yes(v.Deleted, "listed for its physical snapshots, and gone with the last of them"))
	w.row("id", v.ID)
	w.row("size", humanSize(v.Size))
	w.row("mapped", humanSize(v.MappedBytes))
	w.row("exclusive", humanSize(v.ExclusiveBytes))
	if v.TotalBytes != nil {
		w.row("with snapshots", humanSize(*v.TotalBytes))
	}
	w.row("shared", humanSize(v.SharedBytes))
	w.row("layout", v.Layout)
	w.field("file", v.Path+yes(v.ReadOnly, ", read-only"))
	w.field("mirrored to", v.MirroredTo)
	w.field("broken", v.Broken)
	w.field("changed", yes(v.Suspect, "somebody else has changed the file; what older snapshots have in it is not served"))
	w.field("rollback", yes(v.CopyingBack, "not wholly in the file yet; clients see what they should"))
	w.field("filling", filling(v))
	w.row("depends on", strings.Join(v.DependsOn, ", "))
	w.field("labels", joined(v.Labels))
	w.row("snapshots", v.Snapshots)
	if v.Bookmarks > 0 {
		w.row("bookmarks", v.Bookmarks)
	}
	w.field("parent", v.Parent)
	w.field("origin", v.Origin)
	w.row("created", localTime(&v.CreatedAt))
	w.field("writers waited", milliseconds(v.PauseMS))
	w.field("durable after", milliseconds(v.DurableMS))
	for _, c := range v.Clients {
		w.row("client", c.Address+" since "+localTime(&c.ConnectedAt)+yes(c.Written, ", has written"))
	}
}

type volumeRename struct {
	Volume string `arg:"" help:"Volume."`
	New    string `arg:"" help:"New name."`
}

// Run renames a volume.
func (c volumeRename) Run(t *terminal) error {
	return t.change(c.Volume, contract.ChangeVolume{Name: c.New})
}

func (t *terminal) change(volume string, r contract.ChangeVolume) error {
	changed, err := t.client.ChangeVolume(t.ctx, volume, r)
	if err != nil {
		return err
	}
	return t.showVolume(changed)
}

type volumeLabel struct {
	Volume string            `arg:"" help:"Volume."`
	Labels map[string]string `arg:"" name:"K=V" help:"Labels." mapsep:"none"`
}

// Run labels a volume.
func (c volumeLabel) Run(t *terminal) error {
	return t.change(c.Volume, contract.ChangeVolume{Labels: c.Labels})
}

type volumeResize struct {
	Volume string `arg:"" help:"Volume."`
	Size   size   `arg:"" help:"New size."`
}

// Run resizes a volume.
func (c volumeResize) Run(t *terminal) error {
	n := int64(c.Size)
	return t.change(c.Volume, contract.ChangeVolume{Size: &n, Force: t.Force})
}

type volumeDelete struct {
	Volume string `arg:"" help:"Volume."`
}

// Run deletes a volume.
func (c volumeDelete) Run(t *terminal) error {
	if err := t.client.DeleteVolume(t.ctx, c.Volume, t.Force); err != nil {
		return err
	}
	t.chat("volume %s is deleted", c.Volume)
	return nil
}

type volumeExport struct {
	Source string `arg:"" name:"volume[@snapshot]" help:"Volume or snapshot."`
	File   string `arg:"" help:"File to write; an existing one needs --force."`
	Format string `help:"raw or qcow2." enum:"raw,qcow2" default:"raw" placeholder:"FORMAT"`
}

// Run exports a volume.
func (c volumeExport) Run(t *terminal) error {
	file, err := filepath.Abs(c.File)
	if err != nil {
		return fmt.Errorf("%s: %w", c.File, err)
	}
	job, err := t.client.Export(t.ctx, contract.ExportFile{Source: c.Source, File: file, Format: c.Format, Force: t.Force})
	if err != nil {
		return err
	}
	return t.finish(job, func(r *contract.Result) error {
		return t.print(r.Export, func(w *table) { drawExport(w, r.Export) })
	})
}

func drawExport(w *table, e *contract.Export) {
	w.row("source", e.Source)
	w.row("file", e.File)
	w.row("format", e.Format)
	w.row("size", humanSize(e.Size))
	w.row("data", humanSize(e.DataBytes))
}

type volumeRelayout struct {
	Volume string `arg:"" help:"Volume."`
}

// Run rewrites a volume in order.
func (c volumeRelayout) Run(t *terminal) error {
	job, err := t.client.Relayout(t.ctx, c.Volume)
	if err != nil {
		return err
	}
	return t.finish(job, func(r *contract.Result) error {
		return t.print(r.Relayout, func(w *table) { drawRelayout(w, r.Relayout) })
	})
}

type volumeCopyBack struct {
	Volume string `arg:"" help:"Volume."`
}

// Run copies a rollback back.
func (c volumeCopyBack) Run(t *terminal) error {
	job, err := t.client.CopyBack(t.ctx, c.Volume)
	if err != nil {
		return err
	}
	return t.finishVolume(job)
}

// finishVolume waits for a job and shows the volume that it worked on.
func (t *terminal) finishVolume(job contract.Job) error {
	return t.finish(job, func(r *contract.Result) error {
		if r.Volume == nil { // it is deleted already
			return nil
		}
		return t.showVolume(*r.Volume)
	})
}

type volumeFill struct {
	Volume string `arg:"" help:"Volume."`
}

// Run fills a volume.
func (c volumeFill) Run(t *terminal) error {
	job, err := t.client.Fill(t.ctx, c.Volume)
	if err != nil {
		return err
	}
	return t.finishVolume(job)
}

func drawRelayout(w *table, r *contract.Relayout) {
	w.row("volume", r.Volume)
	w.row("moved", humanSize(r.MovedBytes))
	w.row("in order before", humanSize(r.OrderedBytes))
	w.row("shared, left alone", humanSize(r.SharedBytes))
	w.row("written meanwhile", humanSize(r.ChangedBytes))
	w.row("damaged, left alone", humanSize(r.DamagedBytes))
}
