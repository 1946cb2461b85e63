package seglog

import (
	"path"
	"slices"
	"strings"
)

// FileKind says what a file in the log's directory is.
type FileKind int

// The kinds of files.
const (
	LogFile      FileKind = iota // a segment, a pack, or a spare
	LeftoverFile                 // what was interrupted left it; the next opening removes it
	ForeignFile                  // not of the log
)

// KindOf tells what a file is by its name; names are all that are in the directory.
func KindOf(name string, names []string) FileKind {
	number, ext, _ := strings.Cut(name, ".")
	switch "." + ext {
	case denseSuffix + rewriteSuffix, packSuffix + rewriteSuffix:
		if len(number) == 16 {
			return LeftoverFile
		}
	case segmentSuffix:
		if slices.Contains(names, number+denseSuffix) {
			return LeftoverFile
		}
		return LogFile
	}
	switch path.Ext(name) {
	case segmentSuffix, denseSuffix, packSuffix, spareSuffix: // any such name is looked at when the log is opened
		return LogFile
	}
	return ForeignFile
}
