package catalogue

import (
	"testing"

	"github.com/google/uuid"
)

// copied is a catalogue of a volume 1 (head 1) with a copy 5 in volume 2 (head 3, snapshot 6) and a snapshot 7 that is to become one in volume 3 (head 8).
func copied(t testing.TB) *Catalogue {
	c := New()
	for _, op := range []*Op{
		{CreateVolume: &CreateVolume{Number: 1, UUID: uuid.New(), Name: "a", SizeBytes: 4096, HeadID: 1}},
		{CreateSnapshots: &CreateSnapshots{Name: "one", Of: []NewSnapshot{{Volume: 1, ID: 2, UUID: uuid.New(), Copying: &NewCopying{Technique: Clone, Volume: 2, HeadID: 3, UUID: uuid.New()}}}}},
		{FinishCopy: &FinishCopy{Of: 2, ID: 5, Kept: 6}},
		{CreateSnapshots: &CreateSnapshots{Name: "two", Of: []NewSnapshot{{Volume: 1, ID: 7, UUID: uuid.New(), Copying: &NewCopying{Technique: CowCopy, Volume: 3, HeadID: 8, UUID: uuid.New()}}}}},
	} {
		if err := c.Apply(op); err != nil {
			t.Fatal(err)
		}
	}
	demandSound(t, c)
	return c
}

// What has the content of a copy is nothing that a record can name by itself: each of these, in a forged or damaged log, would leave a copy without it.
func TestContentOfCopiesIsNobodysElse(t *testing.T) {
	for name, op := range map[string]*Op{
		"deleting the content's volume":   {DeleteVolume: &DeleteVolume{Number: 2}},
		"deleting what is being filled":   {DeleteVolume: &DeleteVolume{Number: 3}},
		"deleting the content":            {DeleteSnapshots: &DeleteSnapshots{IDs: []uint64{6}}},
		"copying the content":             {CreateSnapshots: &CreateSnapshots{Name: "x", Of: []NewSnapshot{{Volume: 2, ID: 9, Copying: &NewCopying{Technique: Clone, Path: "/x"}}}}},
		"a snapshot of the content":       {CreateSnapshots: &CreateSnapshots{Name: "x", Of: []NewSnapshot{{Volume: 2, ID: 9}}}},
		"a snapshot of what is filled":    {CreateSnapshots: &CreateSnapshots{Name: "x", Of: []NewSnapshot{{Volume: 3, ID: 9}}}},
		"a bookmark of the content":       {CreateBookmark: &CreateBookmark{Of: 6, ID: 9, Name: "x"}},
		"resizing what is filled":         {ResizeVolume: &ResizeVolume{Number: 3, SizeBytes: 8192}},
		"renaming what is filled":         {SetVolume: &SetVolume{Number: 3, Name: "x"}},
		"rolling the content back":        {Rollback: &Rollback{Volume: 2, To: 6, KeptID: 9, KeptName: "x"}},
		"progress beyond the end":         {CopyProgress: &CopyProgress{ID: 7, DoneBytes: 4097}},
		"progress before the beginning":   {CopyProgress: &CopyProgress{ID: 7, DoneBytes: -1}},
		"finishing what was finished":     {FinishCopy: &FinishCopy{Of: 5, ID: 9, Kept: 10}},
		"finishing into a file":           {FinishCopy: &FinishCopy{Of: 7, ID: 9}},
		"cancelling a copy":               {CancelCopy: &CancelCopy{ID: 5}},
		"a copy in the volume of another": {CreateSnapshots: &CreateSnapshots{Name: "x", Of: []NewSnapshot{{Volume: 1, ID: 9, Copying: &NewCopying{Technique: Clone, Volume: 3, HeadID: 10}}}}},
	} {
		if err := copied(t).Apply(op); err == nil {
			t.Errorf("%s is applied", name)
		}
	}
}

// TestImagesOfCopiesNameEachOther: a copy and the volume of its content do, in an image that is sound.
func TestImagesOfCopiesNameEachOther(t *testing.T) {
	for name, damage := range map[string]func(c *Catalogue){
		"no content":                               func(c *Catalogue) { c.replace(5, func(s *State) { s.Copy = nil }) },
		"content of a snapshot":                    func(c *Catalogue) { c.replace(6, func(s *State) { s.Copy = &Content{State: 6} }) },
		"content of another":                       func(c *Catalogue) { v := *c.volumes[2]; v.ContentOf = 7; c.volumes[2] = &v },
		"content of nobody":                        func(c *Catalogue) { v := *c.volumes[2]; v.ContentOf = 1; c.volumes[2] = &v },
		"content that is not there":                func(c *Catalogue) { c.replace(5, func(s *State) { s.Copy = &Content{State: 99} }) },
		"a user's volume as content":               func(c *Catalogue) { v := *c.volumes[1]; v.ContentOf = 5; c.volumes[1] = &v },
		"a deleted volume with a logical snapshot": func(c *Catalogue) { v := *c.volumes[1]; v.Deleted = true; c.volumes[1] = &v },
		"progress beyond the end": func(c *Catalogue) {
			c.replace(7, func(s *State) { k := *s.Copying; k.DoneBytes = 1 << 20; s.Copying = &k })
		},
	} {
		c := copied(t)
		damage(c)
		if _, err := Decode(encoded(t, c)); err == nil {
			t.Errorf("%s: the image is taken for a sound one", name)
		}
	}
}
