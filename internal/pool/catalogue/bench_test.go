package catalogue

import (
	"fmt"
	"testing"

	"github.com/google/uuid"
)

// BenchmarkView takes a view of 1,000 volumes and 10,000 snapshots, which is what a checkpoint does while writers wait.
func BenchmarkView(b *testing.B) {
	c := New()
	apply := func(op *Op) {
		if err := c.Apply(op); err != nil {
			b.Fatal(err)
		}
	}
	for i := range uint64(1000) {
		apply(&Op{CreateVolume: &CreateVolume{Number: i + 1, UUID: uuid.New(), Name: fmt.Sprintf("v%d", i), SizeBytes: 1 << 40, HeadID: c.LastState + 1}})
	}
	for i := range uint64(10_000) {
		apply(&Op{CreateSnapshots: &CreateSnapshots{
			Name: fmt.Sprintf("s%d", i), Group: uuid.New(), Of: []NewSnapshot{{Volume: i%10 + 1, ID: c.LastState + 1, UUID: uuid.New()}},
		}})
	}
	for b.Loop() {
		if n := len(c.View().States()); n != 11_000 {
			b.Fatal(n)
		}
	}
}
