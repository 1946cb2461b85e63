package repository

import (
	"errors"

	"varve/internal/repository/envelope"
)

// Errors of a repository, wrapped with its URL or the object.
var (
	// ErrNotFound: no such backup, or it was deleted.
	ErrNotFound = errors.New("no such backup")
	// ErrDeleted: a backup of this id was deleted here, and is not forgotten yet.
	ErrDeleted = errors.New("it was deleted here, and prune has not forgotten it yet")
	// ErrAmbiguous: more than one backup's id begins so.
	ErrAmbiguous = errors.New("more than one backup has an id that begins so")
	// ErrNoRepository: the place is there and holds no repository.
	ErrNoRepository = errors.New("not a repository")
	// ErrIsRepository: the place holds a repository already.
	ErrIsRepository = errors.New("there is a repository already")
	// ErrNotEmpty: the place holds other things.
	ErrNotEmpty = errors.New("not empty")
	// ErrNotEncrypted: a key was given, and there is nothing that it opens.
	ErrNotEncrypted = errors.New("it is not encrypted, and a key was given")
	// ErrOther: the place holds another repository than it did, or one with another key.
	ErrOther = errors.New("another repository")
	// ErrBaseGone: what a new backup builds on was deleted meanwhile.
	ErrBaseGone = errors.New("what it builds on is gone")
	// ErrFenced: the session took so long that it was given up.
	ErrFenced = errors.New("the session was given up")
	// ErrLapsed: a reader's pin could not be renewed in time; what it reads may be deleted.
	ErrLapsed = errors.New("the pin has lapsed")
	// ErrDamaged: an object is not what was put, and its parity does not suffice.
	ErrDamaged = envelope.ErrDamaged
)
