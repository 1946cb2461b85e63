package qcow2

import "errors"

// Errors of this package, wrapped with the file's name and details; test with
// errors.Is. Errors of reading the file itself (package raw) are passed on.
var (
	// ErrCorrupt: the file's structure cannot be right: damaged, cut short or forged.
	ErrCorrupt = errors.New("corrupt qcow2 image")
	// ErrUnsupported: the image uses something that Varve does not read; the text says what to do.
	ErrUnsupported = errors.New("unsupported qcow2 image")
	// ErrNeedsCheck: the image marks itself as dirty or corrupt.
	ErrNeedsCheck = errors.New("the image needs a check")
	// ErrBacking: the backing file cannot or must not be used.
	ErrBacking = errors.New("backing file refused")
)
