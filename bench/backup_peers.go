package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// keeper is a program that keeps backups of a disk image in a repository of its own. What it returns are the times and the memory of
// the step alone.
type keeper interface {
	// source is the image that it backs up, repository the directory of all that it has stored.
	source() string
	repository() string
	// first backs the image up into an empty repository, again once more without a change, reading what it needs to read.
	first(ctx context.Context) (spent, error)
	again(ctx context.Context) (spent, error)
	// verify reads all that the last backup needs.
	verify(ctx context.Context) (spent, error)
	// restore brings the last backup back, to a file below a directory that is empty.
	restore(ctx context.Context, dir string) (took spent, file string, err error)
	stop() error
}

// recipe are the command lines of a program that backs up files. In arguments and variables {dir} is a directory of its own, {repo} the
// repository, {image} the image, {out} where restored files go, {latest} the id of the last backup.
type recipe struct {
	program  string
	version  string // the argument that prints it
	env      []string
	prepare  [][]string
	first    []string
	again    []string
	verify   []string
	restore  []string
	restored string   // the file that it restores
	list     []string // prints the backups as JSON, the last one last; nil where no id is needed
	folder   bool     // it backs up directories: {dir}/folder has the image, as disk
}

// Peers as a user runs them: encrypted, with zstd. borg cuts an image best at fixed places.
var (
	resticRecipe = recipe{
		program: "restic", version: "version",
		env:     []string{"RESTIC_PASSWORD=benchmark", "RESTIC_CACHE_DIR={dir}/cache"},
		prepare: [][]string{{"init", "-q", "-r", "{repo}"}},
		first:   []string{"backup", "-q", "-r", "{repo}", "{image}"},
		again:   []string{"backup", "-q", "-r", "{repo}", "--force", "{image}"},
		verify:  []string{"check", "-q", "-r", "{repo}", "--read-data"},
		restore: []string{"restore", "-q", "-r", "{repo}", "latest", "--target", "{out}"}, restored: "{out}{image}",
	}
	borgRecipe = recipe{
		program: "borg", version: "--version",
		env:     []string{"BORG_PASSPHRASE=benchmark", "BORG_BASE_DIR={dir}/home"},
		prepare: [][]string{{"init", "-e", "repokey", "{repo}"}},
		first:   []string{"create", "-C", "zstd,1", "--chunker-params", "fixed,1048576", "{repo}::first", "{image}"},
		again:   []string{"create", "-C", "zstd,1", "--chunker-params", "fixed,1048576", "{repo}::again", "{image}"},
		verify:  []string{"check", "--verify-data", "{repo}"},
		restore: []string{"extract", "{repo}::again"}, restored: "{out}{image}", // to where it is run
	}
	kopiaRecipe = recipe{
		program: "kopia", version: "--version",
		env: []string{
			"KOPIA_PASSWORD=benchmark", "KOPIA_CHECK_FOR_UPDATES=false", "KOPIA_CONFIG_PATH={dir}/config", "KOPIA_CACHE_DIRECTORY={dir}/cache", "KOPIA_LOG_DIR={dir}/log",
		},
		prepare: [][]string{{"repository", "create", "filesystem", "--path={repo}"}, {"policy", "set", "--global", "--compression=zstd-fastest"}},
		first:   []string{"snapshot", "create", "{dir}/folder"},
		again:   []string{"snapshot", "create", "--force-hash=100", "{dir}/folder"},
		verify:  []string{"snapshot", "verify", "--verify-files-percent=100"},
		restore: []string{"snapshot", "restore", "{latest}", "{out}/folder"}, restored: "{out}/folder/disk",
		list: []string{"snapshot", "list", "--json", "{dir}/folder"}, folder: true,
	}
)

// peerKeeper does what a recipe says.
type peerKeeper struct {
	recipe
	dir, image string
}

// start makes an empty repository. errAbsent where the program is not installed.
func (r recipe) start(ctx context.Context, s settings, image string) (_ keeper, err error) {
	if _, err := exec.LookPath(r.program); err != nil {
		return nil, fmt.Errorf("%w: %s is not installed", errAbsent, r.program)
	}
	k := &peerKeeper{recipe: r, image: image}
	if k.dir, err = os.MkdirTemp(s.dir, "varve-bench"); err != nil {
		return nil, err
	}
	if r.folder {
		folder := filepath.Join(k.dir, "folder")
		if err := errors.Join(os.Mkdir(folder, 0o700), linkOrCopy(image, filepath.Join(folder, "disk"))); err != nil {
			return nil, errors.Join(err, k.stop())
		}
	}
	for _, args := range r.prepare {
		if _, _, err := k.run(ctx, k.dir, args); err != nil {
			return nil, errors.Join(err, k.stop())
		}
	}
	return k, nil
}

func (k *peerKeeper) source() string { return k.image }

func (k *peerKeeper) repository() string { return filepath.Join(k.dir, "repository") }

// run runs a command line of the recipe in a directory.
func (k *peerKeeper) run(ctx context.Context, in string, args []string, more ...string) (spent, []byte, error) {
	fill := strings.NewReplacer(append([]string{"{dir}", k.dir, "{repo}", k.repository(), "{image}", k.image}, more...)...)
	filled := func(of []string) []string {
		of = slices.Clone(of)
		for i, x := range of {
			of[i] = fill.Replace(x)
		}
		return of
	}
	return timed(ctx, in, filled(k.env), k.program, filled(args)...)
}

func (k *peerKeeper) first(ctx context.Context) (spent, error) {
	took, _, err := k.run(ctx, k.dir, k.recipe.first)
	return took, err
}

// again gives the image another time of modification, or it would be taken to be unchanged without a look.
func (k *peerKeeper) again(ctx context.Context) (spent, error) {
	if err := os.Chtimes(k.image, time.Time{}, time.Now()); err != nil {
		return spent{}, err
	}
	took, _, err := k.run(ctx, k.dir, k.recipe.again)
	return took, err
}

func (k *peerKeeper) verify(ctx context.Context) (spent, error) {
	took, _, err := k.run(ctx, k.dir, k.recipe.verify)
	return took, err
}

func (k *peerKeeper) restore(ctx context.Context, dir string) (spent, string, error) {
	more := []string{"{out}", dir, "{latest}", ""}
	if k.list != nil {
		_, out, err := k.run(ctx, k.dir, k.list, more...)
		if err != nil {
			return spent{}, "", err
		}
		if more[3], err = lastID(out); err != nil {
			return spent{}, "", fmt.Errorf("%s: %w", k.program, err)
		}
	}
	took, _, err := k.run(ctx, dir, k.recipe.restore, more...)
	return took, strings.NewReplacer("{out}", dir, "{image}", k.image).Replace(k.restored), err
}

// lastID is the id of the last element of a JSON list.
func lastID(list []byte) (string, error) {
	var all []struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(list, &all); err != nil {
		return "", fmt.Errorf("list of backups: %w", err)
	}
	if len(all) == 0 {
		return "", errors.New("list of backups: it is empty")
	}
	return all[len(all)-1].ID, nil
}

func (k *peerKeeper) stop() error { return os.RemoveAll(k.dir) }
