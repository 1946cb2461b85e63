package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"varve/internal/contract"
	"varve/internal/depot"
)

type repoKeyGroup struct {
	List   keyList   `cmd:"" help:"List who can open a repository."`
	Add    keyAdd    `cmd:"" help:"Let one more passphrase or age recipient open it."`
	Remove keyRemove `cmd:"" help:"Have one open it no longer. Who kept the keys can still read what was written until the next rotate."`
	Rotate keyRotate `cmd:"" help:"Seal what is written from now on with new keys."`
	Export keyExport `cmd:"" help:"Print the keys as a text for a safe: with it alone all can be read."`
}

type keyList struct {
	Args  []string `arg:"" optional:"" name:"repository" help:"Name; none with --url."`
	Place place    `embed:""`
}

// Run lists keys.
func (c keyList) Run(t *terminal) error {
	name, _, err := c.Place.named(c.Args, 0, "a name")
	if err != nil {
		return err
	}
	show := func(keys []contract.RepositoryKey) error {
		return t.print(keys, func(w *table) { drawKeys(w, keys) })
	}
	if !c.Place.here() {
		keys, err := t.client.RepositoryKeys(t.ctx, name)
		if err != nil {
			return err
		}
		return show(keys)
	}
	return c.Place.with(t, 0, 0, func(d *depot.Depot) error { return show(d.Keys()) })
}

func drawKeys(w *table, keys []contract.RepositoryKey) {
	w.row("KEY", "KIND", "LABEL", "ADDED", "RECIPIENT")
	for _, k := range keys {
		recipient := k.Recipient
		if k.Kind == contract.KeyPassphrase {
			recipient = "" // of its slot: nobody needs it
		}
		w.row(k.ID, k.Kind, k.Label, localTime(k.CreatedAt), recipient)
	}
}

type keyAdd struct {
	Args            []string `arg:"" optional:"" name:"repository" help:"Name; none with --url."`
	Place           place    `embed:""`
	NewPasswordFile string   `help:"File whose first line is the passphrase to be added." placeholder:"FILE"`
	Recipient       string   `help:"Age recipient to be added." placeholder:"AGE"`
	Label           string   `help:"What to call it." placeholder:"TEXT"`
}

// Run adds a key.
func (c keyAdd) Run(t *terminal) error {
	name, _, err := c.Place.named(c.Args, 0, "a name")
	if err != nil {
		return err
	}
	r := contract.AddKey{Recipient: c.Recipient, Label: c.Label}
	if r.PasswordFile, err = absolute(c.NewPasswordFile); err != nil {
		return err
	}
	show := func(k contract.RepositoryKey) error {
		return t.print(k, func(w *table) { drawKeys(w, []contract.RepositoryKey{k}) })
	}
	if !c.Place.here() {
		k, err := t.client.AddRepositoryKey(t.ctx, name, r)
		if err != nil {
			return err
		}
		return show(k)
	}
	return c.Place.with(t, 0, 0, func(d *depot.Depot) error {
		k, err := d.AddKey(t.ctx, r)
		if err != nil {
			return err
		}
		return show(k)
	})
}

type keyRemove struct {
	Args  []string `arg:"" name:"repository key" help:"Name of the repository, and id of the key. With --url the id alone."`
	Place place    `embed:""`
}

// Run removes a key.
func (c keyRemove) Run(t *terminal) error {
	name, rest, err := c.Place.named(c.Args, 1, "a name and the id of a key")
	if err != nil {
		return err
	}
	if !c.Place.here() {
		return t.client.RemoveRepositoryKey(t.ctx, name, rest[0])
	}
	return c.Place.with(t, 0, 0, func(d *depot.Depot) error { return d.RemoveKey(t.ctx, rest[0]) })
}

type keyRotate struct {
	Args  []string `arg:"" optional:"" name:"repository" help:"Name; none with --url."`
	Place place    `embed:""`
}

// Run rotates the keys.
func (c keyRotate) Run(t *terminal) error {
	name, _, err := c.Place.named(c.Args, 0, "a name")
	if err != nil {
		return err
	}
	if c.Place.here() {
		err = c.Place.with(t, 0, 0, func(d *depot.Depot) error { return d.RotateKeys(t.ctx) })
	} else {
		err = t.client.RotateRepositoryKeys(t.ctx, name)
	}
	if err == nil {
		t.chat("what is written from now on has new keys; if you keep an export, make it again: varve repo key export")
	}
	return err
}

type keyExport struct {
	Args  []string `arg:"" optional:"" name:"repository" help:"Name; none with --url."`
	Place place    `embed:""`
	To    string   `help:"Write it to this new file, which only you can read, rather than to stdout." placeholder:"FILE"`
}

// Run exports the keys.
func (c keyExport) Run(t *terminal) error {
	name, _, err := c.Place.named(c.Args, 0, "a name")
	if err != nil {
		return err
	}
	if !c.Place.here() {
		e, err := t.client.ExportRepositoryKeys(t.ctx, name)
		if err != nil {
			return err
		}
		return c.write(t, e)
	}
	return c.Place.with(t, 0, 0, func(d *depot.Depot) error {
		e, err := d.ExportKeys()
		if err != nil {
			return err
		}
		return c.write(t, e)
	})
}

func (c keyExport) write(t *terminal, e contract.KeyExport) error {
	if c.To == "" {
		if t.Output == "json" {
			return t.print(e, nil)
		}
		_, err := fmt.Fprint(t.stdout, e.Text)
		return err
	}
	f, err := os.OpenFile(c.To, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return contract.Errorf(contract.CodeRefused, "export the keys to %s: there is such a file", c.To).WithHint("choose another name")
	}
	if err != nil {
		return err
	}
	if _, err = f.WriteString(e.Text); err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		os.Remove(c.To)
	}
	return err
}
