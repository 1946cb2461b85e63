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
	return s.watchDevice(f, f.Source)
}

// watchDevice is watch for a block device.
func (s *Source) watchDevice(f contract.ForeignSource, path string) error {
	guard, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return cause(err)
	}
	s.atEnd(func() { guard.Close() })
	before := written(guard)
	why, err := used(guard)
	if err != nil {
		return err
	}
	if why != "" {
		return s.live(f, path, why)
	}
	s.stills = append(s.stills, func() error {
		why, err := used(guard)
		if err == nil && why == "" && before != "" && written(guard) != before {
			why = "somebody has written to it"
		}
		switch {
		case err != nil:
			return err
		case why != "":
			return fmt.Errorf("%s: %w", why, ErrChanged)
		}
		return nil
	})
	return nil
}

// used tells who may be writing to a block device; empty if nobody is found.
func used(device *os.File) (why string, err error) {
	info, err := device.Stat()
	if err != nil {
		return "", cause(err)
	}
	own := numberOf(info)
	if own == "" {
		return "", nil
	}
	numbers := related(own)
	if where := mountedForWriting(numbers); where != "" {
		return "it is mounted for writing on " + where, nil
	}
	if swapped(numbers) {
		return "it is swapped to", nil
	}
	for n := range numbers {
		held, err := filepath.Glob(inSysfs(n) + "/holders/*")
		if err == nil && len(held) > 0 {
			return "it is part of " + filepath.Base(held[0]), nil
		}
	}
	return writers(func(other os.FileInfo) bool { return numbers[numberOf(other)] }), nil
}

// written is how many sectors of a block device the kernel has counted as written and as discarded, once its cache is written too: the
// same at two times if nobody wrote to it between them. Empty where nobody can tell.
func written(device *os.File) string {
	info, err := device.Stat()
	if err != nil || device.Sync() != nil {
		return ""
	}
	b, err := os.ReadFile(inSysfs(numberOf(info)) + "/stat")
	if err != nil {
		return ""
	}
	const written, discarded = 6, 13 // see the kernel's Documentation/block/stat.rst; a flush counts as a write of no sectors
	counts := strings.Fields(string(b))
	if len(counts) <= discarded {
		return ""
	}
	return counts[written] + " " + counts[discarded]
}

// inSysfs is where the kernel describes the device of a number, MAJOR:MINOR.
func inSysfs(number string) string { return "/sys/dev/block/" + number }

// related are the numbers of a device, of its partitions, and of the one that it is a partition of: who writes to one of them may be
// writing to it.
func related(own string) map[string]bool {
	out := map[string]bool{own: true}
	dir := inSysfs(own)
	parts, _ := filepath.Glob(dir + "/*/partition")
	for i, p := range parts {
		parts[i] = filepath.Dir(p)
	}
	if _, err := os.Stat(dir + "/partition"); err == nil {
		parts = append(parts, dir+"/..") // dir is a link: that is not /sys/dev/block
	}
	for _, p := range parts {
		if b, err := os.ReadFile(p + "/dev"); err == nil {
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
		if !numbers[left[2]] && !numbers[numberAt(unescape(right[1]))] {
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
		if fields := strings.Fields(line); len(fields) > 0 && numbers[numberAt(unescape(fields[0]))] {
			return true
		}
	}
	return false
}

// numberAt is numberOf a block device's name; empty for anything else.
func numberAt(path string) string {
	if !filepath.IsAbs(path) {
		return ""
	}
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	return numberOf(info)
}

// numberOf is MAJOR:MINOR of a block device; empty for anything else.
func numberOf(info os.FileInfo) string {
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
