package vfs

import (
	"os"
	"path/filepath"
	"testing"
)

// TestDeviceIdentity: of what sysfs says of a device the surest counts; a partition is told by its disk, or by its own label.
func TestDeviceIdentity(t *testing.T) {
	for name, c := range map[string]struct {
		attributes map[string]string // of the disk, "part/..." of a partition of it
		disk, part string
	}{
		"SCSI":           {map[string]string{"device/wwid": "naa.5000c500a1b2c3d4\n"}, "device/wwid naa.5000c500a1b2c3d4", "device/wwid naa.5000c500a1b2c3d4, partition 1 from sector 2048"},
		"spaces":         {map[string]string{"device/wwid": "t10.ATA     DISK    7 \n"}, "device/wwid t10.ATA DISK 7", "device/wwid t10.ATA DISK 7, partition 1 from sector 2048"},
		"NVMe":           {map[string]string{"wwid": "eui.01\n", "device/serial": "S1\n"}, "wwid eui.01", "wwid eui.01, partition 1 from sector 2048"},
		"virtio":         {map[string]string{"serial": "data-7\n"}, "serial data-7", "serial data-7, partition 1 from sector 2048"},
		"logical volume": {map[string]string{"dm/uuid": "LVM-abc\n"}, "dm/uuid LVM-abc", "dm/uuid LVM-abc, partition 1 from sector 2048"},
		"loop": {
			map[string]string{"loop/backing_file": "/srv/x.img\n", "loop/offset": "512\n"},
			"loop device of /srv/x.img from byte 512", "loop device of /srv/x.img from byte 512, partition 1 from sector 2048",
		},
		"no serial number": {map[string]string{"serial": "\n", "part/uevent": "DEVTYPE=partition\nPARTUUID=1234-01\n"}, "", "partition 1234-01"},
		"nothing":          {map[string]string{"part/uevent": "DEVTYPE=partition\n"}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			sys := t.TempDir()
			disk := filepath.Join(sys, "devices/disk")
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			write := func(file, value string) {
				t.Helper()
				file = filepath.Join(disk, file)
				must(os.MkdirAll(filepath.Dir(file), 0o700))
				must(os.WriteFile(file, []byte(value), 0o600))
			}
			write("part/partition", "1\n")
			write("part/start", "2048\n")
			for file, value := range c.attributes {
				write(file, value)
			}
			must(os.MkdirAll(filepath.Join(sys, "dev/block"), 0o700))
			must(os.Symlink(disk, filepath.Join(sys, "dev/block/8:0")))
			must(os.Symlink(filepath.Join(disk, "part"), filepath.Join(sys, "dev/block/8:1")))
			if got := deviceIdentity(sys, 8, 0); got != c.disk {
				t.Errorf("the disk is %q, want %q", got, c.disk)
			}
			if got := deviceIdentity(sys, 8, 1); got != c.part {
				t.Errorf("the partition is %q, want %q", got, c.part)
			}
			if got := deviceIdentity(sys, 8, 2); got != "" {
				t.Errorf("what is not there is %q", got)
			}
		})
	}
}
