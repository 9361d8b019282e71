# Exercises the interpreter; prints the same everywhere.
use strict;
use warnings;

my $state = 42;
sub next_random { return $state = ($state * 1103515245 + 12345) % 2147483648 }

my (%count, @lines);
for my $i (1 .. 40000) {
    my $word = join '', map { chr(97 + next_random() / 65536 % 9) } 1 .. 4;
    $count{$word}++;
    push @lines, sprintf("%05d %s %.4f", $i, $word, sqrt($i) / 3);
}
my @top = (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count)[0 .. 9];
print "top: @top[0 .. 4] $count{$top[0]} ", scalar(keys %count), "\n";

my $text = join "\n", @lines;
my $vowels = ($text =~ tr/aei//);
my $matches = () = $text =~ /\b([a-d]+)e(\w)\b/g;
(my $changed = $text) =~ s/(\d+)\.(\d)/$2-$1/g;
my $sum = unpack '%32C*', $changed;
print "text: $vowels $matches $sum ", length $changed, "\n";

my @sorted = sort { substr($a, 6) cmp substr($b, 6) || $a cmp $b } @lines;
print "sorted: $sorted[0] | $sorted[-1]\n";

my $total = 0;
$total += sin($_) * cos($_ / 3) + log($_) for 1 .. 60000;
printf "floats: %.8f\n", $total;

sub fib { my $n = shift; return $n < 2 ? $n : fib($n - 1) + fib($n - 2) }
print "fib: ", fib(21), "\n";
my $nested = { map { $_ => [1 .. $_] } 1 .. 200 };
my $elements = 0;
$elements += @{$nested->{$_}} for sort { $a <=> $b } keys %$nested;
print "nested: $elements\n";
