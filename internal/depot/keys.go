package depot

import (
	"context"

	"varve/internal/contract"
	"varve/internal/repository/keys"
)

// Keys lists who can open the repository; none without encryption.
func (d *Depot) Keys() []contract.RepositoryKey {
	d.changing.Lock()
	defer d.changing.Unlock()
	return d.keys()
}

func (d *Depot) keys() []contract.RepositoryKey {
	out := []contract.RepositoryKey{}
	if ring := d.repo.Ring(); ring != nil {
		for _, m := range ring.Methods {
			out = append(out, keyOf(m))
		}
	}
	return out
}

func keyOf(m keys.Method) contract.RepositoryKey {
	return contract.RepositoryKey{ID: m.ID, Kind: m.Kind, Label: m.Label, Recipient: m.Recipient, CreatedAt: contract.At(m.CreatedAt)}
}

// change does something with the ring, one at a time.
func (d *Depot) change(do func(*keys.Ring) error) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	ring := d.repo.Ring()
	if ring == nil {
		return errNoEncryption
	}
	return do(ring)
}

// AddKey lets one more passphrase or recipient open the repository.
func (d *Depot) AddKey(ctx context.Context, r contract.AddKey) (key contract.RepositoryKey, err error) {
	add := keys.Add{Label: r.Label, Recipient: r.Recipient}
	if (r.PasswordFile == "") == (r.Recipient == "") {
		return key, contract.Errorf(contract.CodeUsage, "add a key: either a passphrase or a recipient is needed").WithHint("--new-password-file FILE, or --recipient AGE-RECIPIENT")
	}
	if r.PasswordFile != "" {
		if add.Passphrase, err = readPassphrase(r.PasswordFile); err != nil {
			return key, err
		}
	}
	err = d.change(func(ring *keys.Ring) error {
		m, err := ring.AddMethod(ctx, d.repo.Store(), add)
		key = keyOf(m)
		return err
	})
	return key, err
}

// RemoveKey has a passphrase or recipient open the repository no longer. The beginning of its id will do if no other begins so.
func (d *Depot) RemoveKey(ctx context.Context, id string) error {
	return d.change(func(ring *keys.Ring) error {
		var found []string
		for _, m := range ring.Methods {
			if len(id) >= 4 && len(m.ID) >= len(id) && m.ID[:len(id)] == id {
				found = append(found, m.ID)
			}
		}
		if len(found) > 1 {
			return contract.Errorf(contract.CodeUsage, "remove key %s: more than one begins so", id)
		}
		if len(found) == 1 {
			id = found[0]
		}
		return ring.RemoveMethod(ctx, d.repo.Store(), id)
	})
}

// RotateKeys has all that is written from now on sealed with new keys. An open repository goes on with those it has: open it again.
func (d *Depot) RotateKeys(ctx context.Context) error {
	return d.change(func(ring *keys.Ring) error { return ring.Rotate(ctx, d.repo.Store()) })
}

// ExportKeys returns the keys as a text for a safe.
func (d *Depot) ExportKeys() (out contract.KeyExport, err error) {
	err = d.change(func(ring *keys.Ring) error {
		text, err := ring.Export()
		out = contract.KeyExport{Repository: d.repo.ID().String(), Text: string(text)}
		return err
	})
	return out, err
}
