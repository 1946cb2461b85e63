package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"varve/internal/contract"
	"varve/internal/depot"
)

type repoCommands struct {
	Init   repoInit     `cmd:"" help:"Make a repository in a directory or a bucket that holds nothing yet."`
	Add    repoAdd      `cmd:"" help:"Have the daemon know a repository that is there."`
	List   repoList     `cmd:"" help:"List the repositories that the daemon knows."`
	Show   repoShow     `cmd:"" help:"Show a repository: what it holds, what its backups took, who can open it."`
	Check  repoCheck    `cmd:"" help:"Look for damage, and mend what can be. Exit status 5 if something is lost."`
	Prune  repoPrune    `cmd:"" help:"Give back the space of what no backup needs any more, once its grace is over."`
	Copy   repoCopy     `cmd:"" help:"Copy backups to another repository, sealed with its keys."`
	Remove repoRemove   `cmd:"" help:"Have the daemon forget a repository, which stays as it is."`
	Key    repoKeyGroup `cmd:"" help:"Who can open a repository."`
}

// percentage is a whole number of percent, with or without its sign.
type percentage int

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *percentage) UnmarshalText(text []byte) error {
	n, err := strconv.Atoi(strings.TrimSuffix(string(text), "%"))
	if err != nil || n < 0 || n > 100 {
		return fmt.Errorf("%q: want a number from 0 to 100", text)
	}
	*p = percentage(n)
	return nil
}

// sample is a part in percent, above 0, with or without its sign.
type sample float64

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *sample) UnmarshalText(text []byte) error {
	f, err := strconv.ParseFloat(strings.TrimSuffix(string(text), "%"), 64)
	if err != nil || !(f > 0 && f <= 100) {
		return fmt.Errorf("%q: want a number of percent above 0, to 100", text)
	}
	*p = sample(f)
	return nil
}

// grace is a duration that may be 0.
type grace time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (g *grace) UnmarshalText(text []byte) error {
	if string(text) == "0" {
		*g = 0
		return nil
	}
	return (*keepFor)(g).UnmarshalText(text)
}

type repoInit struct {
	Args         []string    `arg:"" optional:"" name:"name url" help:"What the daemon is to call it, and where it is to lie: /PATH, file:///PATH or s3://HOST[:PORT]/BUCKET[/PREFIX]. With --url neither."`
	Place        place       `embed:""`
	Recipient    []string    `help:"Age recipient who may open it, repeatable; for the daemon to use it, --identity-file too." placeholder:"AGE" sep:"none"`
	NoEncryption bool        `help:"Anybody who can read the store can read the backups."`
	Label        string      `help:"What to call the passphrase." placeholder:"TEXT"`
	Dedup        string      `help:"What shares content: all backups of the repository, or each set of a full and what depends on it." enum:"repository,set" default:"repository" placeholder:"SCOPE"`
	ChunkSize    size        `help:"Largest chunk, a power of two from 64K to 1M (default 512K)." placeholder:"SIZE"`
	Parity       *percentage `help:"Reed-Solomon parity of what is stored (default 3)." placeholder:"PERCENT"`
	Grace        *grace      `help:"How long what nothing needs is kept (default 24h)." placeholder:"DURATION"`
}

// Run makes a repository.
func (c repoInit) Run(t *terminal) error {
	r := contract.InitRepository{
		Recipients: c.Recipient, NoEncryption: c.NoEncryption, Label: c.Label, Dedup: c.Dedup, ChunkSize: int64(c.ChunkSize), Parity: (*int)(c.Parity),
	}
	if c.Grace != nil {
		seconds := int64(time.Duration(*c.Grace).Seconds())
		r.GraceSeconds = &seconds
	}
	location := c.Place.URL
	if !c.Place.here() {
		if len(c.Args) != 2 {
			return contract.Errorf(contract.CodeUsage, "a name and a URL are needed").WithHint("varve repo init NAME URL; or, without a daemon, varve repo init --url URL")
		}
		r.Name, location = c.Args[0], c.Args[1]
	} else if len(c.Args) > 0 {
		return contract.Errorf(contract.CodeUsage, "with --url URL no name is given, and no other URL")
	}
	var err error
	if r.Access, err = c.Place.Access.of(location); err != nil {
		return err
	}
	if !c.Place.here() {
		made, err := t.client.InitRepository(t.ctx, r)
		if err != nil {
			return err
		}
		return t.showRepository(made)
	}
	warning, err := depot.Place(r.Access.URL, t.Data)
	if err != nil {
		return err
	}
	d, err := depot.Init(t.ctx, r, depot.Options{Program: "varve " + t.version})
	if err != nil {
		return err
	}
	defer d.Close()
	made, err := d.Show(t.ctx)
	if err != nil {
		return err
	}
	if warning != "" {
		made.Warnings = append(made.Warnings, warning)
	}
	return t.showRepository(made)
}

type repoAdd struct {
	Name   string `arg:"" help:"What to call it."`
	URL    string `arg:"" name:"url" help:"Where it lies: /PATH, file:///PATH or s3://HOST[:PORT]/BUCKET[/PREFIX]."`
	Access access `embed:""`
}

// Run adds a repository. With --force also one that cannot be reached now.
func (c repoAdd) Run(t *terminal) error {
	a, err := c.Access.of(c.URL)
	if err != nil {
		return err
	}
	added, err := t.client.AddRepository(t.ctx, contract.AddRepository{Name: c.Name, Access: a, Force: t.Force})
	if err != nil {
		return err
	}
	return t.showRepository(added)
}

type repoList struct{}

// Run lists repositories.
func (repoList) Run(t *terminal) error {
	all, err := t.client.Repositories(t.ctx)
	if err != nil {
		return err
	}
	return t.print(all, func(w *table) {
		w.row("NAME", "STATE", "BACKUPS", "VOLUMES", "LAST BACKUP", "URL", "")
		for _, r := range all {
			w.row(r.Name, r.State, r.Backups, r.Volumes, localTime(r.LastBackupAt), r.URL, listed(damagedBackups(r), r.Reason))
		}
	})
}

func damagedBackups(r contract.Repository) string {
	if r.Damaged == 0 {
		return ""
	}
	return fmt.Sprintf("%d damaged", r.Damaged)
}

type repoShow struct {
	Args  []string `arg:"" optional:"" name:"repository" help:"Name; none with --url."`
	Place place    `embed:""`
}

// Run shows a repository.
func (c repoShow) Run(t *terminal) error {
	name, _, err := c.Place.named(c.Args, 0, "a name")
	if err != nil {
		return err
	}
	if !c.Place.here() {
		r, err := t.client.Repository(t.ctx, name)
		if err != nil {
			return err
		}
		return t.showRepository(r)
	}
	return c.Place.with(t, 0, 0, func(d *depot.Depot) error {
		r, err := d.Show(t.ctx)
		if err != nil {
			return err
		}
		return t.showRepository(r)
	})
}

func (t *terminal) showRepository(r contract.Repository) error {
	t.warn(r.Warnings...)
	return t.print(r, func(w *table) { drawRepository(w, r) })
}

func drawRepository(w *table, r contract.Repository) {
	if r.Name != r.URL {
		w.field("name", r.Name)
	}
	w.row("url", r.URL)
	w.field("id", r.ID)
	w.row("state", r.State)
	w.field("reason", r.Reason)
	if r.CreatedAt == nil {
		return
	}
	w.row("created", localTime(r.CreatedAt))
	w.row("encryption", r.Encryption)
	w.row("dedup", r.Dedup)
	w.row("chunk size", humanSize(r.ChunkSize))
	w.row("parity", fmt.Sprintf("%d%%", r.Parity))
	w.row("grace", (time.Duration(r.GraceSeconds) * time.Second).String())
	w.row("backups", listed(fmt.Sprintf("%d of %d volumes", r.Backups, r.Volumes), damagedBackups(r)))
	w.field("last backup", localTime(r.LastBackupAt))
	if u := r.Usage; u != nil {
		w.row()
		w.row("stored", fmt.Sprintf("%s in %d objects: data %s, maps %s, index %s, other %s",
			humanSize(u.StoredBytes), u.Objects, humanSize(u.DataBytes), humanSize(u.MapBytes), humanSize(u.IndexBytes), humanSize(u.OtherBytes)))
		if u.CondemnedBytes > 0 {
			w.row("to be given back", humanSize(u.CondemnedBytes))
		}
		w.row("backups hold", humanSize(u.LogicalBytes))
		w.row("read", humanSize(u.ReadBytes))
		drawDedup(w, u.NewBytes, u.DuplicateBytes, u.CompressedBytes)
		w.row("written", fmt.Sprintf("%s, of which parity %s, in %d requests", humanSize(u.WrittenBytes), humanSize(u.ParityBytes), u.Requests))
		drawStages(w, u.Seconds, u.Stages)
	}
	if len(r.Keys) > 0 {
		w.row()
		drawKeys(w, r.Keys)
	}
}

// drawDedup shows what became of what was read.
func drawDedup(w *table, fresh, duplicate, compressed int64) {
	w.row("deduplicated", fmt.Sprintf("%s of %s%s", humanSize(duplicate), humanSize(fresh+duplicate), share(duplicate, fresh+duplicate)))
	w.row("compressed", fmt.Sprintf("%s to %s%s", humanSize(fresh), humanSize(compressed), share(compressed, fresh)))
}

func share(part, whole int64) string {
	if whole == 0 {
		return ""
	}
	return fmt.Sprintf(" (%.0f%%)", 100*float64(part)/float64(whole))
}

func drawStages(w *table, seconds float64, stages []contract.Step) {
	w.row("took", fmt.Sprintf("%.2f s", seconds))
	for _, s := range stages {
		w.row("  "+s.Name, fmt.Sprintf("%.2f s", s.MS/1000))
	}
}

type repoCheck struct {
	Args       []string `arg:"" optional:"" name:"repository" help:"Name; none with --url."`
	Place      place    `embed:""`
	Sample     sample   `help:"Only so many percent of the packs, chosen at random." placeholder:"PCT"`
	TimeBudget keepFor  `help:"As many as fit in this time, least recently verified first." placeholder:"DURATION"`
	Sealed     bool     `help:"Without a key: look at envelopes only, and mend these."`
}

// Run checks a repository.
func (c repoCheck) Run(t *terminal) error {
	name, _, err := c.Place.named(c.Args, 0, "a name")
	if err != nil {
		return err
	}
	r := contract.CheckRepository{SamplePercent: float64(c.Sample), BudgetSeconds: time.Duration(c.TimeBudget).Seconds(), Sealed: c.Sealed}
	if !c.Place.here() {
		job, err := t.client.CheckRepository(t.ctx, name, r)
		if err != nil {
			return err
		}
		return t.finish(job, func(r *contract.Result) error { return t.showRepoCheck(r.RepoCheck) })
	}
	if c.Sealed {
		return c.sealed(t, r)
	}
	return c.Place.with(t, 0, 0, func(d *depot.Depot) error {
		var found contract.RepositoryCheck
		err := t.work("check "+d.Name(), func(p depot.Progress) (err error) {
			found, err = d.Check(t.ctx, r, p)
			return err
		})
		if err == nil || isDamage(err) {
			err = also(err, t.showRepoCheck(&found))
		}
		return err
	})
}

// sealed checks without opening the repository.
func (c repoCheck) sealed(t *terminal, r contract.CheckRepository) error {
	a, err := accessHere(t, c.Place.URL, c.Place.Access)
	if err != nil {
		return err
	}
	var found contract.RepositoryCheck
	err = t.work("check "+a.URL, func(p depot.Progress) (err error) {
		found, err = depot.CheckSealed(t.ctx, a, r, p)
		return err
	})
	if err == nil || isDamage(err) {
		err = also(err, t.showRepoCheck(&found))
	}
	return err
}

func (t *terminal) showRepoCheck(c *contract.RepositoryCheck) error {
	if c == nil {
		return nil
	}
	for _, note := range c.Notes {
		t.chat("%s", note)
	}
	return t.print(c, func(w *table) { drawRepoCheck(w, c) })
}

func drawRepoCheck(w *table, c *contract.RepositoryCheck) {
	w.row("objects verified", c.Objects)
	w.row("read", humanSize(c.Bytes))
	if c.Left > 0 {
		w.row("not looked at", fmt.Sprintf("%d objects", c.Left))
	}
	w.row("damaged objects", int64(len(c.Damage))+c.MoreDamage)
	w.row("took", fmt.Sprintf("%.2f s", c.Seconds))
	if len(c.Damage) > 0 {
		w.row()
		w.row("OBJECT", "STATE", "BACKUPS", "WHY")
		for _, d := range c.Damage {
			w.row(d.Object, d.State, len(d.Backups), oneLine(d.Message))
		}
	}
	if len(c.Harmed) > 0 {
		w.row()
		w.row("HARMED BACKUP", "VOLUME", "OFFSET", "LENGTH")
		for _, h := range c.Harmed {
			drawLost(w, h.ID, h.Volume, h.Whole, h.Ranges)
		}
	}
}

// drawLost shows the ranges of a backup that are lost.
func drawLost(w *table, id, volume string, whole bool, ranges []contract.Extent) {
	if whole || len(ranges) == 0 {
		w.row(id, volume, "all of it", "")
		return
	}
	for _, e := range ranges {
		w.row(id, volume, e.Offset, e.Length)
	}
}

type repoPrune struct {
	Args       []string `arg:"" optional:"" name:"repository" help:"Name; none with --url."`
	Place      place    `embed:""`
	DryRun     bool     `help:"Change nothing; tell what would be done."`
	IgnoreLost bool     `help:"Go on although parts of the maps of backups are lost: what these alone told to be needed is not kept."`
}

// Run prunes a repository.
func (c repoPrune) Run(t *terminal) error {
	name, _, err := c.Place.named(c.Args, 0, "a name")
	if err != nil {
		return err
	}
	r := contract.PruneRepository{DryRun: c.DryRun, IgnoreLost: c.IgnoreLost}
	if !c.Place.here() {
		job, err := t.client.PruneRepository(t.ctx, name, r)
		if err != nil {
			return err
		}
		return t.finish(job, func(r *contract.Result) error { return t.showPrune(r.RepoPrune) })
	}
	return c.Place.with(t, 0, 0, func(d *depot.Depot) error {
		var done contract.RepositoryPrune
		err := t.work("prune "+d.Name(), func(p depot.Progress) (err error) {
			done, err = d.Prune(t.ctx, r, p)
			return err
		})
		if err != nil {
			return err
		}
		return t.showPrune(&done)
	})
}

func (t *terminal) showPrune(p *contract.RepositoryPrune) error {
	if p == nil {
		return nil
	}
	t.warn(p.Warnings...)
	return t.print(p, func(w *table) { drawPrune(w, p) })
}

func drawPrune(w *table, p *contract.RepositoryPrune) {
	would := ""
	if p.DryRun {
		would = "would be "
	}
	w.row(would+"given back", fmt.Sprintf("%s in %d objects", humanSize(p.FreedBytes), p.DeletedObjects))
	w.row(would+"condemned", fmt.Sprintf("%s in %d packs", humanSize(p.CondemnedBytes), p.CondemnedPacks))
	if p.WaitingBytes > 0 {
		w.row("waiting", humanSize(p.WaitingBytes))
	}
	w.row(would+"moved", humanSize(p.CopiedBytes))
	if p.LockedObjects > 0 {
		w.row("locked", fmt.Sprintf("%d objects, until their retention ends", p.LockedObjects))
	}
	w.row("backups need", humanSize(p.LiveBytes))
	w.row("stored", humanSize(p.StoredBytes))
	w.field("more from", localTime(p.NextAt))
	w.row("took", fmt.Sprintf("%.2f s", p.Seconds))
}

type repoCopy struct {
	Args  []string `arg:"" optional:"" name:"from to backup" help:"Names of the two repositories, then the ids of backups; none: all. With --url and --to-url ids alone."`
	Place place    `embed:""`
	ToURL string   `name:"to-url" help:"With --url: where the other repository lies." placeholder:"URL"`
	To    access   `embed:"" prefix:"to-"`
	Limit size     `help:"Bytes a second, each way." placeholder:"RATE"`
	Lock  int      `help:"Put what is written under a retention of so many days (buckets with object lock)." placeholder:"DAYS"`
}

// Run copies backups.
func (c repoCopy) Run(t *terminal) error {
	from, rest, err := c.Place.named(c.Args, -1, "")
	if err != nil {
		return err
	}
	r := contract.CopyRepository{Limit: int64(c.Limit), LockDays: c.Lock}
	if !c.Place.here() {
		if c.ToURL != "" || c.To.given() || len(rest) == 0 {
			return contract.Errorf(contract.CodeUsage, "the other repository is not named").WithHint("varve repo copy FROM TO; or, without a daemon, varve repo copy --url FROM --to-url TO")
		}
		r.To, r.Backups = rest[0], rest[1:]
		job, err := t.client.CopyRepository(t.ctx, from, r)
		if err != nil {
			return err
		}
		return t.finish(job, func(r *contract.Result) error { return t.showCopied(r.RepoCopy) })
	}
	if c.ToURL == "" {
		return contract.Errorf(contract.CodeUsage, "with --url the other repository is named by --to-url URL")
	}
	r.Backups = rest
	return c.Place.with(t, 0, int64(c.Limit), func(source *depot.Depot) error {
		target, err := openAt(t, c.ToURL, c.To, int64(c.Limit), 0)
		if err != nil {
			return err
		}
		defer target.Close()
		var done contract.RepositoryCopy
		err = t.work("copy "+source.Name(), func(p depot.Progress) (err error) {
			done, err = depot.Copy(t.ctx, source, target, r, p)
			return err
		})
		if err == nil || isDamage(err) {
			err = also(err, t.showCopied(&done))
		}
		return err
	})
}

func (t *terminal) showCopied(c *contract.RepositoryCopy) error {
	if c == nil {
		return nil
	}
	return t.print(c, func(w *table) { drawCopied(w, c) })
}

func drawCopied(w *table, c *contract.RepositoryCopy) {
	w.row("BACKUP", "VOLUME", "CREATED", "TYPE", "STORED")
	for _, b := range c.Copied {
		w.row(b.ID, b.Volume, localTime(&b.CreatedAt), b.Type, humanSize(b.StoredBytes))
	}
	for _, id := range c.Present {
		w.row(id, "", "", "", "there already")
	}
}

type repoRemove struct {
	Name string `arg:"" name:"repository" help:"Name."`
}

// Run has the daemon forget a repository.
func (c repoRemove) Run(t *terminal) error {
	if err := t.client.RemoveRepository(t.ctx, c.Name); err != nil {
		return err
	}
	t.chat("%s is forgotten; what it holds is as it was", c.Name)
	return nil
}
