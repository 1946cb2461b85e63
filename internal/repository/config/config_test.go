package config_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository/config"
	"varve/internal/repository/copies"
	"varve/internal/repository/envelope"
	"varve/internal/repository/keys"
	"varve/internal/repository/seal"
)

func sample() config.Config {
	return config.Config{
		Repository: uuid.New(), CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), ChunkBytes: 256 << 10,
		Scope: config.ScopeSet, Parity: 3, Grace: 24 * time.Hour, Encryption: config.Age,
	}
}

func create(t *testing.T, st objects.Store, c config.Config) (*config.Config, *seal.Keys) {
	t.Helper()
	k := seal.NewKeys(c.Repository)
	if c.Encryption == config.Plain {
		k = seal.PlainKeys(c.Repository)
	}
	made, err := config.Create(t.Context(), st, c, k)
	if err != nil {
		t.Fatal(err)
	}
	return made, k
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func same(t *testing.T, got, want *config.Config) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(config.Config{}), cmpopts.EquateEmpty()); d != "" {
		t.Fatal(d)
	}
}

func TestLoadsWhatWasCreated(t *testing.T) {
	for _, change := range []func(c *config.Config){
		func(*config.Config) {},
		func(c *config.Config) { c.Encryption = config.Plain },
		func(c *config.Config) {
			c.Scope, c.Parity, c.Grace, c.ChunkBytes = config.ScopeRepository, 0, 0, 64<<10
		},
		func(c *config.Config) { c.Parity, c.ChunkBytes = 100, 1<<20 },
		func(c *config.Config) {
			c.Features.ReadOnly, c.Features.NoPrune = []string{"new-records"}, []string{"a", "b"}
		},
	} {
		st := faulty.New()
		c := sample()
		change(&c)
		made, k := create(t, st, c)
		if made.Version != 1 {
			t.Fatal("version", made.Version)
		}
		for n := range copies.Count {
			alone := st.Clone()
			for other := range copies.Count {
				if other != n {
					alone.Lose(copies.Name("config", other))
				}
			}
			got, err := config.Load(t.Context(), alone)
			if err != nil {
				t.Fatal(err)
			}
			same(t, got, made)
			if _, err := got.Verify(t.Context(), alone, k); err != nil {
				t.Fatal(err)
			}
			if written, err := config.Complete(t.Context(), alone, c.Repository); err != nil || len(written) != 2 {
				t.Fatal(written, err)
			}
			if d := cmp.Diff(st.Names(), alone.Names()); d != "" {
				t.Fatal(d)
			}
		}
	}
}

func TestNoRepository(t *testing.T) {
	_, err := config.Load(t.Context(), faulty.New())
	wantErr(t, err, objects.ErrNotFound)
}

func TestNoSecondRepository(t *testing.T) {
	st := faulty.New()
	made, _ := create(t, st, sample())
	c := sample()
	_, err := config.Create(t.Context(), st, c, seal.NewKeys(c.Repository))
	wantErr(t, err, config.ErrExists)
	got, err := config.Load(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, made)
}

func TestInvalidConfigurations(t *testing.T) {
	for name, spoil := range map[string]func(c *config.Config){
		"uuid":       func(c *config.Config) { c.Repository = uuid.Nil },
		"small":      func(c *config.Config) { c.ChunkBytes = 32 << 10 },
		"big":        func(c *config.Config) { c.ChunkBytes = 2 << 20 },
		"odd":        func(c *config.Config) { c.ChunkBytes = 96 << 10 },
		"scope":      func(c *config.Config) { c.Scope = 2 },
		"parity":     func(c *config.Config) { c.Parity = 101 },
		"negative":   func(c *config.Config) { c.Parity = -1 },
		"grace":      func(c *config.Config) { c.Grace = -1 },
		"encryption": func(c *config.Config) { c.Encryption = 2 },
		"feature":    func(c *config.Config) { c.Features.NoPrune = []string{"A"} },
		"unnamed":    func(c *config.Config) { c.Features.Refuse = []string{""} },
		"plain":      func(c *config.Config) { c.Encryption = config.Plain },
	} {
		c := sample()
		spoil(&c)
		st := faulty.New()
		_, err := config.Create(t.Context(), st, c, seal.NewKeys(c.Repository))
		if !errors.Is(err, config.ErrInvalid) || len(st.Names()) > 0 {
			t.Errorf("%s: %v, wrote %v", name, err, st.Names())
		}
	}
	c := sample()
	_, err := config.Create(t.Context(), faulty.New(), c, seal.NewKeys(uuid.New()))
	wantErr(t, err, config.ErrInvalid)
}

// TestForgedConfigurationIsNoticed changes what an intruder would like to, under the repository's own UUID.
func TestForgedConfigurationIsNoticed(t *testing.T) {
	for name, forge := range map[string]func(c *config.Config){
		"grace":  func(c *config.Config) { c.Grace = 0 },
		"scope":  func(c *config.Config) { c.Scope = config.ScopeRepository },
		"parity": func(c *config.Config) { c.Parity = 0 },
		"flags":  func(c *config.Config) { c.Features.NoPrune = nil },
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			st := faulty.New()
			c := sample()
			c.Features.NoPrune = []string{"something"}
			made, k := create(t, st, c)
			forge(&c)
			elsewhere := faulty.New()
			create(t, elsewhere, c) // under a key of the intruder's
			for n := range copies.Count {
				st.Plant(copies.Name("config", n), elsewhere.Bytes("config.0"))
				got, err := config.Load(ctx, st)
				if err != nil {
					t.Fatal(err)
				}
				same(t, got, &config.Config{
					Version: 1, Features: c.Features, Repository: c.Repository, CreatedAt: c.CreatedAt, ChunkBytes: c.ChunkBytes,
					Scope: c.Scope, Parity: c.Parity, Grace: c.Grace, Encryption: c.Encryption,
				})
				got, err = got.Verify(ctx, st, k)
				if n == copies.Count-1 {
					wantErr(t, err, config.ErrForged)
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				same(t, got, made)
			}
		})
	}
}

func TestForgedEverywhereButOnce(t *testing.T) {
	st := faulty.New()
	_, k := create(t, st, sample())
	other, _ := create(t, faulty.New(), sample())
	_, err := other.Verify(t.Context(), st, k)
	if err != nil {
		t.Fatal("the genuine copies are there", err)
	}
	_, err = other.Verify(t.Context(), faulty.New(), k)
	wantErr(t, err, objects.ErrNotFound)
}

func TestFeaturesBound(t *testing.T) {
	c := sample()
	for _, a := range []config.Access{config.Read, config.Write, config.Prune} {
		if err := c.Allows(a); err != nil {
			t.Fatal(err)
		}
	}
	for first, f := range map[config.Access]config.Features{
		config.Read:  {Refuse: []string{"x"}},
		config.Write: {ReadOnly: []string{"x"}},
		config.Prune: {NoPrune: []string{"x"}},
	} {
		c.Features = f
		for _, a := range []config.Access{config.Read, config.Write, config.Prune} {
			if err := c.Allows(a); (a >= first) != errors.Is(err, config.ErrUnknownFeature) {
				t.Errorf("%+v, access %d: %v", f, a, err)
			}
		}
	}
	st := faulty.New()
	c = sample()
	c.Features.Refuse = []string{"sharded-packs"}
	create(t, st, c)
	_, err := config.Load(t.Context(), st)
	wantErr(t, err, config.ErrUnknownFeature)
}

// initialise makes a repository as one does: the ring first, then the configuration.
func initialise(ctx context.Context, st objects.Store, c config.Config, passphrase string) (*seal.Keys, error) {
	k := seal.NewKeys(c.Repository)
	r, err := keys.Create(ctx, st, k, []keys.Add{{Passphrase: []byte(passphrase), Cost: keys.Cost{Passes: 1, MemoryKiB: 8, Lanes: 1}}})
	if err != nil {
		return nil, err
	}
	_, err = config.Create(ctx, st, c, k)
	if errors.Is(err, config.ErrExists) {
		err = errors.Join(err, r.Discard(ctx, st))
	}
	return k, err
}

// opens loads a repository as one does, and fails the test unless it is whole.
func opens(t *testing.T, st objects.Store, c *config.Config, passphrase string) {
	t.Helper()
	r, err := keys.Open(t.Context(), st, c.Repository, keys.Unlock{Passphrase: []byte(passphrase)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Verify(t.Context(), st, r.Keys); err != nil {
		t.Fatal(err)
	}
}

// TestInterruptedInit fails at each operation: there is a repository that opens, or there is none and one can be made.
func TestInterruptedInit(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n := 0; ; n++ {
			st := faulty.New()
			client := st.Client()
			client.Inject(faulty.Fault{Skip: n, After: after, Err: objects.ErrUnavailable})
			_, err := initialise(t.Context(), client, sample(), "first")
			t.Run(fmt.Sprintf("after=%v,n=%d", after, n), func(t *testing.T) {
				c, loadErr := config.Load(t.Context(), st)
				if loadErr == nil {
					opens(t, st, c, "first")
					_, again := initialise(t.Context(), st, sample(), "second")
					wantErr(t, again, config.ErrExists)
					opens(t, st, c, "first")
					if _, err := config.Complete(t.Context(), st, c.Repository); err != nil {
						t.Fatal(err)
					}
					st.Lose("config.0")
					st.Lose("config.1")
					c, loadErr = config.Load(t.Context(), st)
					if loadErr != nil {
						t.Fatal(loadErr)
					}
					opens(t, st, c, "first")
					return
				}
				wantErr(t, loadErr, objects.ErrNotFound)
				if err == nil {
					t.Fatal("it said it was made")
				}
				second := sample()
				if _, err := initialise(t.Context(), st, second, "second"); err != nil {
					t.Fatal(err)
				}
				c, loadErr = config.Load(t.Context(), st)
				if loadErr != nil {
					t.Fatal(loadErr)
				}
				if c.Repository != second.Repository {
					t.Fatal("the first came back")
				}
				opens(t, st, c, "second")
			})
			if err == nil {
				break
			}
		}
	}
}

// TestTwoInit has a second one make a repository in front of each operation of the first: one of them has one.
func TestTwoInit(t *testing.T) {
	for _, exclusive := range []bool{true, false} {
		for n := 0; ; n++ {
			st := faulty.New()
			st.SetExclusive(exclusive)
			client := st.Client()
			calls, met := 0, false
			second := errors.New("not yet")
			client.SetHook(func(ctx context.Context, c faulty.Call) error {
				if !c.After {
					if calls == n {
						met = true
						_, second = initialise(ctx, st, sample(), "second")
					}
					calls++
				}
				return nil
			})
			_, first := initialise(t.Context(), client, sample(), "first")
			if !met {
				break
			}
			t.Run(fmt.Sprintf("exclusive=%v,n=%d", exclusive, n), func(t *testing.T) {
				c, err := config.Load(t.Context(), st)
				if err != nil {
					t.Fatal(err)
				}
				switch {
				case first == nil:
					opens(t, st, c, "first")
				case second == nil:
					opens(t, st, c, "second")
				default:
					t.Fatal("neither has one", first, second)
				}
				if exclusive && first == nil && second == nil {
					t.Fatal("both were told that they have one")
				}
			})
		}
	}
}

func TestHeaderAndContentAgree(t *testing.T) {
	st := faulty.New()
	create(t, st, sample())
	h, payload, err := envelope.Open(st.Bytes("config.0"))
	if err != nil {
		t.Fatal(err)
	}
	h.Repository = uuid.New()
	object, err := envelope.Build(h, payload)
	if err != nil {
		t.Fatal(err)
	}
	for n := range copies.Count {
		st.Plant(copies.Name("config", n), slices.Concat(object...))
	}
	_, err = config.Load(t.Context(), st)
	wantErr(t, err, envelope.ErrDamaged)
}
