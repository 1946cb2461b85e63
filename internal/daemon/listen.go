package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
)

// maxSocketPath is the longest path of a unix socket in bytes (sun_path less its NUL).
const maxSocketPath = 107

// IsSocketPath tells paths of unix sockets, which have a slash in them or no
// colon, from host:port.
func IsSocketPath(addr string) bool {
	return strings.Contains(addr, "/") || !strings.Contains(addr, ":")
}

// Listen listens on addr: host:port, or the path of a unix socket. A socket is made with mode 0600; one that
// a dead process left behind is replaced, one that answers is ErrServed, and
// anything else at that path is left alone.
func Listen(addr string) (net.Listener, error) {
	if IsSocketPath(addr) {
		return listenUnix(addr)
	}
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen on %s: %w", addr, ErrServed)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

func listenUnix(path string) (net.Listener, error) {
	// The socket is bound under a name of its own and moved into place, so that
	// nobody finds it before its mode is set, and a dead one is replaced in one step.
	fresh := fmt.Sprintf("%s.%d", path, os.Getpid())
	if len(fresh) > maxSocketPath {
		return nil, fmt.Errorf("listen on %s: the path of a socket has at most %d bytes: choose a shorter one",
			path, maxSocketPath-len(fresh)+len(path))
	}
	if err := checkStale(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(fresh, 0o600), os.Rename(fresh, path)); err != nil {
		l.Close()
		os.Remove(fresh)
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &socket{UnixListener: l, path: path}, nil
}

// checkStale returns nil if nothing, or only a dead socket, is at path.
func checkStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("the path is taken by something that is no socket")
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return ErrServed
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	return err
}

// socket is a unix listener that removes its path when closed, unless
// another process has taken the path since.
type socket struct {
	*net.UnixListener
	path  string
	close sync.Once
}

func (s *socket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }

func (s *socket) Close() error {
	err := net.ErrClosed
	s.close.Do(func() {
		// A new daemon may already serve the path: ours no longer accepts, so
		// whoever answers there now is somebody else.
		err = s.UnixListener.Close()
		if checkStale(s.path) == nil {
			os.Remove(s.path)
		}
	})
	return err
}
