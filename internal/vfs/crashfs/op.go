package crashfs

import "fmt"

// Kind says what an operation does.
type Kind int

// The kinds of operations. Those from Create on change something: they are
// numbered, and a crash can be placed at each.
const (
	Open Kind = iota
	List
	Stat
	Lock
	Read
	DropCache

	Create
	Remove
	Rename
	Mkdir
	SyncDir
	Write
	Truncate
	Allocate
	PunchHole
	Sync
)

var kindNames = [...]string{
	Open: "open", List: "list", Stat: "stat", Lock: "lock", Read: "read", DropCache: "drop cache",
	Create: "create", Remove: "remove", Rename: "rename", Mkdir: "mkdir", SyncDir: "sync directory",
	Write: "write", Truncate: "truncate", Allocate: "allocate", PunchHole: "punch hole", Sync: "sync",
}

func (k Kind) String() string { return kindNames[k] }

// Op describes one operation.
type Op struct {
	Kind Kind
	// Path is the cleaned name, from the root ("/pool/log"); that of a file
	// operation is the name the file was opened by.
	Path string
	// NewPath is where Rename moves it.
	NewPath string
	// Offset and Length are the bytes concerned. For Truncate, Offset is the new size.
	Offset, Length int64
}

func (o Op) String() string {
	switch o.Kind {
	case Rename:
		return fmt.Sprintf("rename %s to %s", o.Path, o.NewPath)
	case Truncate:
		return fmt.Sprintf("truncate %s at %d", o.Path, o.Offset)
	case Read, Write, Allocate, PunchHole:
		return fmt.Sprintf("%v %s [%d,+%d)", o.Kind, o.Path, o.Offset, o.Length)
	default:
		return fmt.Sprintf("%v %s", o.Kind, o.Path)
	}
}

// Fault makes operations fail.
type Fault struct {
	// Match selects the operations, reads included. It runs with the file system
	// locked and must not use it.
	Match func(Op) bool
	// Err is the cause of the failure, such as syscall.EIO.
	Err error
	// Skip is how many matching operations succeed first.
	Skip int
	// Times is how many fail then; 0 means all.
	Times int
	// Prefix is how many bytes a failing Write stores nevertheless.
	Prefix int64
}

// faultState is an injected Fault and what became of it.
type faultState struct {
	Fault
	matched int
}

// hit tells whether op fails, and counts it.
func (f *faultState) hit(op Op) bool {
	if !f.Match(op) {
		return false
	}
	f.matched++
	return f.matched > f.Skip && (f.Times == 0 || f.matched <= f.Skip+f.Times)
}
