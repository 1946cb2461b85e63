package foreign

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"varve/internal/contract"
	"varve/internal/image"
)

// openDevice opens a block device.
func (s *Source) openDevice(f contract.ForeignSource) error {
	if f.Format != "" && f.Format != image.Raw {
		return contract.Errorf(contract.CodeUsage, "format %s: a block device is raw", f.Format)
	}
	device, info, err := image.Open(f.Source, image.Raw)
	if err != nil {
		return err
	}
	s.atEnd(func() { device.Close() })
	s.Device, s.Warnings = device, append(s.Warnings, info.Warnings...)
	why, err := used(f.Source)
	if err != nil {
		return err
	}
	if why != "" {
		return s.live(f, why)
	}
	s.still = func() error {
		if why, err := used(f.Source); err != nil || why != "" {
			return fmt.Errorf("back up %s: %s: %w", f.Source, why, ErrChanged)
		}
		return nil
	}
	return nil
}

// used tells who may be writing to a block device; empty if nobody is found.
func used(path string) (why string, err error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", cause(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", cause(err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", nil
	}
	numbers := related(st.Rdev)
	if where := mountedForWriting(numbers); where != "" {
		return "it is mounted for writing on " + where, nil
	}
	if swapped(numbers) {
		return "it is swapped to", nil
	}
	for n := range numbers {
		held, err := filepath.Glob("/sys/dev/block/" + n + "/holders/*")
		if err == nil && len(held) > 0 {
			return "it is part of " + filepath.Base(held[0]), nil
		}
	}
	if who := writers(file); who != "" {
		return who + " has it open for writing", nil
	}
	return "", nil
}

// related are the numbers, MAJOR:MINOR, of a device, of its partitions, and of what it is a partition of.
func related(rdev uint64) map[string]bool {
	own := fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev))
	out := map[string]bool{own: true}
	dir := "/sys/dev/block/" + own
	parts, _ := filepath.Glob(dir + "/*/partition")
	for _, p := range parts {
		if b, err := os.ReadFile(filepath.Join(filepath.Dir(p), "dev")); err == nil {
			out[strings.TrimSpace(string(b))] = true
		}
	}
	return out
}

// mountedForWriting names where one of the devices is mounted so that its file system may write to it.
func mountedForWriting(numbers map[string]bool) string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		// 36 35 98:0 /root /mount/point options optional-fields - type source super-options
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 6 || len(right) < 3 {
			continue
		}
		// Some file systems have a number of their own and name the device as the source.
		if !numbers[left[2]] && !numbers[numberOf(unescape(right[1]))] {
			continue
		}
		if options := strings.Split(right[2], ","); options[0] == "rw" {
			return unescape(left[4])
		}
	}
	return ""
}

func swapped(numbers map[string]bool) bool {
	b, err := os.ReadFile("/proc/swaps")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 0 && numbers[numberOf(unescape(fields[0]))] {
			return true
		}
	}
	return false
}

// numberOf is MAJOR:MINOR of a block device's name; empty for anything else.
func numberOf(path string) string {
	if !filepath.IsAbs(path) {
		return ""
	}
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Mode&syscall.S_IFMT != syscall.S_IFBLK {
		return ""
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
}

// unescape undoes what the kernel does to blanks in names.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
