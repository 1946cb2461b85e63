package check

import (
	"context"
	"errors"
	"slices"

	"varve/internal/objects"
	"varve/internal/repository"
	"varve/internal/repository/config"
	"varve/internal/repository/envelope"
	"varve/internal/repository/keys"
)

// complete puts again what is missing of the things that are kept three times. It needs no key.
func (c *checker) complete(ctx context.Context) error {
	if c.write.why() != nil {
		return nil
	}
	var written []string
	put := func(names []string, err error) error {
		written = append(written, names...)
		switch {
		case err == nil, errors.Is(err, objects.ErrNotFound):
			return nil
		case errors.Is(err, objects.ErrLocked):
			c.note("%v", err)
			return nil
		case errors.Is(err, envelope.ErrNewer), repository.IsLost(err):
			c.note("not all could be put again: %v", err)
			return nil
		}
		return c.write.refused(err)
	}
	if err := put(config.Complete(ctx, c.st, c.repository)); err != nil {
		return err
	}
	if c.encrypted {
		if err := put(keys.Complete(ctx, c.st, c.repository)); err != nil {
			return err
		}
	}
	for _, name := range written {
		original, repair := envelope.Original(name)
		if repair == 0 {
			c.damage.add(name, Mended, "it was missing, and was put again from another copy")
			continue
		}
		c.damage.settle(original, Mended, "it was put again from another copy")
	}
	return c.superfluous(ctx, written)
}

// superfluous takes back findings about copies of rings and slots that nobody looks at any more, or that are of other repositories.
func (c *checker) superfluous(ctx context.Context, written []string) error {
	for _, kind := range []envelope.Kind{envelope.Config, envelope.Ring, envelope.Slot} {
		for _, name := range c.damage.lostOfKind(kind) {
			_, _, err := envelope.Load(ctx, c.st, name, c.repository, kind)
			switch {
			case errors.Is(err, objects.ErrNotFound): // a newer ring has taken its place
				c.damage.forget(name)
			case errors.Is(err, envelope.ErrForeign) && kind != envelope.Config && !slices.Contains(written, name):
				c.note("%s: %v: left alone", name, err)
				c.damage.forget(name)
			case err != nil && !repository.IsLost(err):
				return err
			}
		}
	}
	return nil
}
