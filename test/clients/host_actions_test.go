package clients

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/nbd/client"
)

// connection is one to a volume, for its writer.
func (h *host) connection(v *volume) (*client.Client, error) {
	if v.client == nil {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err := client.Dial(ctx, h.uri(v.name), client.Options{})
		if err != nil {
			return nil, err
		}
		if c.SizeBytes() != int64(len(v.now))*block.Size {
			return nil, fmt.Errorf("%s has %v bytes, not %v blocks", v.name, c.SizeBytes(), len(v.now))
		}
		v.client = c
	}
	return v.client, nil
}

// leave closes the connection to a volume, with all that was written durable.
func (h *host) leave(v *volume) error {
	if v.client == nil {
		return nil
	}
	err := flush(v.client)
	v.client.Close()
	v.client = nil
	return err
}

// patch writes, zeroes and discards, or has a region be as others are.
func (h *host) patch() error {
	v := h.volumes[h.random.IntN(len(h.volumes))]
	c, err := h.connection(v)
	if err != nil {
		return err
	}
	if h.random.IntN(3) > 0 {
		r, perform := newRound(h.random, len(v.now), &h.last, []*client.Client{c})
		for lba, s := range r {
			v.now[lba] = s
		}
		return perform()
	}
	const region = 64 << 10 / block.Size
	lba, s := h.random.IntN(len(v.now)/region)*region, stamp(1+h.random.IntN(2))
	p := make([]byte, region*block.Size)
	for i := range region {
		v.now[lba+i] = s
		fill(p[i*block.Size:][:block.Size], int64(lba+i), s)
	}
	return write(c, p, int64(lba)*block.Size)
}

func (h *host) resize() error {
	v := h.volumes[h.random.IntN(len(h.volumes))]
	if v.inplace {
		return h.patch()
	}
	if err := h.leave(v); err != nil {
		return err
	}
	blocks := minBlocks + h.random.IntN(mostBlocks-minBlocks)
	if _, err := h.do("volume", "resize", v.name, fmt.Sprint(blocks*block.Size), "--force"); err != nil {
		return err
	}
	v.now = slices.Clone(v.now[:min(len(v.now), blocks)])
	v.now = append(v.now, make(image, blocks-len(v.now))...)
	return nil
}

// idle takes one or more volumes that no backup is being made of, until release.
func (h *host) idle() (volumes []*volume, release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, v := range h.volumes {
		if !h.busy[v] && (len(volumes) == 0 || h.random.IntN(2) == 0) {
			volumes = append(volumes, v)
			h.busy[v] = true
		}
	}
	return volumes, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, v := range volumes {
			delete(h.busy, v)
		}
	}
}

// backUpSome makes a backup of one volume or of several at one instant: of what they hold, or of a snapshot while the host goes on.
func (h *host) backUpSome() error {
	if _, count := h.w.any(h.random, ""); count > mostBackups {
		return h.deleteOne()
	}
	volumes, release := h.idle()
	if len(volumes) == 0 {
		return h.patch()
	}
	attempt := h.w.attempt(volumes)
	var names []string
	for _, v := range volumes {
		names = append(names, v.name)
	}
	kind := []string{contract.BackupAuto, contract.BackupFull, contract.BackupIncremental, contract.BackupDifferential}[h.random.IntN(4)]
	args := []string{"--repo", "away", "--type", kind, "--label", attemptLabel + "=" + attempt}
	if h.random.IntN(2) == 0 {
		defer release()
		return h.backUp(slices.Concat(names, args))
	}
	if _, err := h.do(slices.Concat([]string{"snapshot", "create"}, names, []string{"--name", "s" + attempt})...); err != nil {
		release()
		return err
	}
	for i := range names {
		names[i] += "@s" + attempt
	}
	h.background.Go(func() {
		defer release()
		err := h.backUp(slices.Concat(names, args))
		h.note(errors.Join(err, h.command(append([]string{"snapshot", "delete"}, names...)...)))
	})
	return nil
}

func (h *host) backUp(args []string) error {
	made, err := asked[[]contract.Backup](h, append([]string{"backup", "create"}, args...)...)
	if err != nil {
		return unlessExcused(err)
	}
	return h.w.made(made)
}

// deleteOne deletes a backup of any host's.
func (h *host) deleteOne() error {
	k, _ := h.w.any(h.random, "")
	if k == nil {
		return h.patch()
	}
	h.w.mu.Lock()
	k.doubt = true
	h.w.mu.Unlock()
	_, err := h.do("backup", "delete", k.id, "--repo", "away")
	if err == nil {
		h.w.mu.Lock()
		k.gone = true
		h.w.mu.Unlock()
	}
	return unlessExcused(err)
}

// withAny runs a command on any backup.
func (h *host) withAny(args func(id string) []string) error {
	k, _ := h.w.any(h.random, "")
	if k == nil {
		return h.patch()
	}
	_, err := h.do(args(k.id)...)
	return h.w.missing(k, err)
}

// missing passes on what was said of a backup that is not there, unless it may be so.
func (w *world) missing(k *kept, err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && strings.Contains(err.Error(), "no such backup") && !k.doubt && !k.gone {
		return fmt.Errorf("a backup is missing that nobody has deleted: %w", err)
	}
	return unlessExcused(err)
}

// restoreInPlace makes a volume what one of its backups holds.
func (h *host) restoreInPlace() error {
	v := h.volumes[h.random.IntN(len(h.volumes))]
	k, _ := h.w.any(h.random, v.id)
	if k == nil || v.inplace && len(k.want) != len(v.now) {
		return h.patch()
	}
	if err := h.leave(v); err != nil {
		return err
	}
	done, err := asked[contract.BackupRestore](h, "backup", "restore", k.id, "--repo", "away", "--in-place", v.name, "--force")
	if err != nil {
		return h.w.missing(k, err)
	}
	v.now = slices.Clone(k.want)
	_, err = h.do("snapshot", "delete", done.Kept.Ref())
	return err
}

// restoreInstantly makes a volume of a backup, or removes one.
func (h *host) restoreInstantly() error {
	if len(h.volumes) > 2 {
		return h.drop(h.volumes[2])
	}
	k, _ := h.w.any(h.random, "")
	if k == nil {
		return h.patch()
	}
	h.things++
	v := &volume{name: fmt.Sprintf("fast%v", h.things), now: slices.Clone(k.want)}
	done, err := asked[contract.BackupRestore](h, "backup", "restore", k.id, "--repo", "away", "--to-volume", v.name, "--instant")
	if err != nil {
		return h.w.missing(k, err)
	}
	v.id = done.Volume.ID
	h.volumes = append(h.volumes, v)
	return nil
}

// drop deletes a volume, unless it is being backed up.
func (h *host) drop(v *volume) error {
	h.mu.Lock()
	busy := h.busy[v]
	h.mu.Unlock()
	if busy {
		return nil
	}
	if err := errors.Join(h.leave(v), h.deleteSnapshots(v)); err != nil {
		return err
	}
	_, err := h.do("volume", "delete", v.name, "--force")
	if err == nil {
		h.volumes = slices.DeleteFunc(h.volumes, func(other *volume) bool { return other == v })
	}
	return err
}

// deleteSnapshots deletes those of a volume that a command was to delete which found no daemon.
func (h *host) deleteSnapshots(v *volume) error {
	all, err := asked[[]contract.Snapshot](h, "snapshot", "list", v.name)
	for _, s := range all {
		if err == nil {
			_, err = h.do("snapshot", "delete", s.Ref())
		}
	}
	return err
}

// again ends the daemon in some way, and starts another one.
func (h *host) again(end func(*daemon)) error {
	for _, v := range h.volumes {
		if err := h.leave(v); err != nil {
			return err
		}
	}
	end(h.daemon)
	h.begin()
	return nil
}
