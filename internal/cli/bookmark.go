package cli

import "varve/internal/contract"

type bookmarkCommands struct {
	Create bookmarkCreate `cmd:"" help:"Make a bookmark of a snapshot, which may then be deleted."`
	List   bookmarkList   `cmd:"" help:"List bookmarks."`
	Delete bookmarkDelete `cmd:"" help:"Delete a bookmark."`
}

type bookmarkCreate struct {
	Snapshot string `arg:"" help:"Snapshot, VOLUME@NAME."`
	Name     string `arg:"" help:"Name of the bookmark; a volume's snapshots and bookmarks share their names."`
}

// Run creates a bookmark.
func (c bookmarkCreate) Run(t *terminal) error {
	b, err := t.client.CreateBookmark(t.ctx, contract.CreateBookmark{Snapshot: c.Snapshot, Name: c.Name})
	if err != nil {
		return err
	}
	return t.print(b, func(w *table) { bookmarkRows(w, b) })
}

func bookmarkRows(w *table, bookmarks ...contract.Bookmark) {
	w.row("BOOKMARK", "CREATED", "SIZE", "OF", "POINT IN TIME")
	for _, b := range bookmarks {
		w.row(b.Ref(), localTime(&b.CreatedAt), humanSize(b.Size), b.Snapshot, localTime(&b.SnapshotCreatedAt))
	}
}

type bookmarkList struct {
	Volume string `arg:"" optional:"" help:"Only of this volume."`
}

// Run lists bookmarks.
func (c bookmarkList) Run(t *terminal) error {
	bookmarks, err := t.client.Bookmarks(t.ctx, c.Volume)
	if err != nil {
		return err
	}
	return t.print(bookmarks, func(w *table) { bookmarkRows(w, bookmarks...) })
}

type bookmarkDelete struct {
	Bookmark string `arg:"" help:"Bookmark, VOLUME#NAME."`
}

// Run deletes a bookmark.
func (c bookmarkDelete) Run(t *terminal) error {
	if err := t.client.DeleteBookmark(t.ctx, c.Bookmark); err != nil {
		return err
	}
	t.chat("deleted: %s", c.Bookmark)
	return nil
}
